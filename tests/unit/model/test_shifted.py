"""Shifted sparse attention equals a dense mask, never attends to the future, and is full attention in evaluation."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)
from transformers.masking_utils import sdpa_mask

from tuneline.errors import RecipeError, VerificationError
from tuneline.model import attention
from tuneline.model.attention import shifted

# B batch, H heads, K key heads, T tokens of a row, D head size


def make_model(kind="s2", heads=4, key_heads=2, seed=0, **changes):
    torch.manual_seed(seed)
    sizes = {"vocab_size": 64, "hidden_size": 8 * heads, "intermediate_size": 16, "num_hidden_layers": 2, "head_dim": 8}
    config = LlamaConfig(**sizes, num_attention_heads=heads, num_key_value_heads=key_heads, **changes)
    return LlamaForCausalLM._from_config(config, attn_implementation=kind).train()


def make_shifted(ratio, max_length, **changes):
    model = make_model(**changes)
    shifted.enable_shifted_attention(model, ratio, max_length)
    return model


def plain_reference(module, query, key, value, attention_mask, dropout=0.0, scaling=None, **_):
    """Softmax over a dense mask: same example (identified by its first token), past, same group."""
    size, heads, tokens = module.s2_group_size, query.shape[1], query.shape[2]
    key, value = (x.repeat_interleave(heads // x.shape[1], dim=1) for x in (key, value))
    starts = attention_mask.float().argmax(dim=-1)  # [B, 1, T]
    position = torch.arange(tokens) - starts
    halves = []
    for shift, count in ((0, heads // 2), (size // 2, heads - heads // 2)):
        group = torch.div(position - shift, size, rounding_mode="floor")
        halves.append((group[..., :, None] == group[..., None, :]).expand(-1, count, -1, -1))
    scores = (query @ key.transpose(-1, -2) * scaling).masked_fill(~(torch.cat(halves, 1) & attention_mask), -torch.inf)
    return (scores.softmax(-1).nan_to_num(0) @ value).transpose(1, 2), None


AttentionInterface.register("plain_reference", plain_reference)
AttentionMaskInterface.register(
    "plain_reference", lambda **kwargs: sdpa_mask(**kwargs | {"allow_is_causal_skip": False})
)

TOKENS = 37
REAL = torch.arange(TOKENS) < torch.tensor([[TOKENS], [29]])
LAYOUTS = {
    "plain": (2, {}),
    "padded on the right": (2, {"attention_mask": REAL.long()}),
    "padded on the left": (2, {"attention_mask": REAL.flip(1).long()}),
    "packed": (1, attention.packed_inputs([11, 1, 20, 5])),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("heads", "key_heads"), [(4, 4), (4, 2), (4, 1), (6, 3), (3, 3), (3, 1), (1, 1)])
@pytest.mark.parametrize("max_length", [40, 28])
def test_logits_and_gradients_equal_those_of_a_dense_mask(layout, heads, key_heads, max_length):
    rows, inputs = LAYOUTS[layout]
    model = make_shifted(0.25, max_length, heads=heads, key_heads=key_heads)
    reference = copy.deepcopy(model)
    reference.set_attn_implementation("plain_reference")
    ids = torch.randint(64, (rows, TOKENS))
    real = inputs.get("attention_mask", torch.ones_like(ids)).bool()

    actual, expected = (m(input_ids=ids, **inputs).logits[real] for m in (model, reference))
    actual.square().sum().backward()
    expected.square().sum().backward()

    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
    for a, b in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-5)


def test_attention_is_sparse_in_training_mode():
    ids = torch.randint(64, (1, TOKENS))

    sparse, full = make_shifted(0.25, TOKENS)(input_ids=ids).logits, make_model("sdpa")(input_ids=ids).logits

    assert not torch.allclose(sparse, full, atol=1e-3)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_attention_is_full_in_evaluation_mode(layout):
    rows, inputs = LAYOUTS[layout]
    ids = torch.randint(64, (rows, TOKENS))
    model, full = make_shifted(0.25, TOKENS).eval(), make_model("sdpa").eval()

    real = inputs.get("attention_mask", torch.ones_like(ids)).bool()
    torch.testing.assert_close(
        model(input_ids=ids, **inputs).logits[real], full(input_ids=ids, **inputs).logits[real], rtol=0, atol=1e-5
    )


def test_generation_matches_full_attention():
    ids = torch.randint(3, 64, (2, 9))
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    options = {"attention_mask": mask, "max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}

    answers = [m.eval().generate(ids, **options) for m in (make_shifted(0.25, 12), make_model("sdpa"))]

    assert answers[0].tolist() == answers[1].tolist()


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 24), min_size=1, max_size=4),
    group=st.integers(2, 13),
    heads=st.sampled_from([(1, 1), (2, 1), (3, 3), (4, 2), (6, 3)]),
    data=st.data(),
)
def test_no_token_attends_to_the_future_or_another_example(lengths, group, heads, data):
    total = sum(lengths)
    position = data.draw(st.integers(0, total - 1))
    model = make_shifted(group / 64, 64, heads=heads[0], key_heads=heads[1])
    inputs = attention.packed_inputs(lengths)
    ids = torch.randint(64, (1, total))
    changed = ids.clone()
    changed[:, position] = (ids[:, position] + 1) % 64

    with torch.no_grad():
        before, after = (model(input_ids=x, **inputs).logits[0] for x in (ids, changed))

    ends = torch.tensor(lengths).cumsum(0)
    example = torch.bucketize(torch.arange(total), ends, right=True)
    may_change = (torch.arange(total) >= position) & (example == example[position])
    torch.testing.assert_close(after[~may_change], before[~may_change], rtol=0, atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(lengths=st.lists(st.integers(1, 24), min_size=1, max_size=4), group=st.integers(2, 13))
def test_separate_packed_and_padded_examples_give_the_same_logits(lengths, group):
    model = make_shifted(group / 64, 64)
    parts = [torch.randint(64, (n,)) for n in lengths]
    longest = max(lengths)
    ids = torch.stack([torch.cat([part, part.new_zeros(longest - len(part))]) for part in parts])
    real = torch.arange(longest) < torch.tensor(lengths)[:, None]

    with torch.no_grad():
        separate = torch.cat([model(input_ids=part[None]).logits[0] for part in parts])
        packed = model(input_ids=torch.cat(parts)[None], **attention.packed_inputs(lengths)).logits[0]
        padded = model(input_ids=ids, attention_mask=real.long()).logits[real]

    torch.testing.assert_close(packed, separate, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(padded, separate, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("shift", "expected"), [(0, [0, 4, 8, 10, 11, 15, 16]), (2, [0, 2, 6, 10, 11, 13, 16])])
def test_groups_are_counted_from_the_start_of_each_example(shift, expected):
    assert shifted.group_bounds([0, 10, 11, 16], 4, shift) == expected


def anchor_attention(module, query, key, value, attention_mask, dropout=0.0, scaling=None, **_):
    """Attention of LlamaFactory's Llama patch: it rolls half of the heads by half a group and splits the row evenly.

    The last group of the rolled heads joins the end of the row with its start under one causal mask. The groups remain
    side by side in the batch when the heads are rolled back, because the reshape before has no effect.
    """
    rows, heads, tokens, size = query.shape
    group = tokens // 4
    key, value = (x.repeat_interleave(heads // x.shape[1], dim=1) for x in (key, value))

    def split_into_groups(x):
        x = x.transpose(1, 2)
        x = torch.cat([x[:, :, : heads // 2], x[:, :, heads // 2 :].roll(-(group // 2), dims=1)], dim=2)
        return x.reshape(rows * 4, group, heads, size).transpose(1, 2)

    out = torch.nn.functional.scaled_dot_product_attention(
        split_into_groups(query), split_into_groups(key), split_into_groups(value), is_causal=True, scale=scaling
    ).transpose(1, 2)
    out = torch.cat([out[:, :, : heads // 2], out[:, :, heads // 2 :].roll(group // 2, dims=1)], dim=2)
    return out.reshape(rows, tokens, heads, size), None


AttentionInterface.register("anchor", anchor_attention)
AttentionMaskInterface.register("anchor", sdpa_mask)


@pytest.mark.parametrize(("kind", "leaks"), [("anchor", True), ("s2", False)])
def test_shifted_attention_does_not_leak_future_tokens_unlike_llamafactory(kind, leaks):
    model = make_shifted(0.25, 32, kind=kind)
    ids = torch.randint(64, (1, 32))
    changed = ids.clone()
    changed[:, 28:] = (ids[:, 28:] + 1) % 64

    difference = (model(input_ids=ids).logits - model(input_ids=changed).logits)[:, :28].abs().max()

    assert (difference > 1e-3) == leaks
    assert leaks or difference < 1e-6


def test_dropout_is_applied_in_training_mode():
    module = torch.nn.Module()
    module.s2_group_size = 4
    query, value = torch.zeros(1, 2, 16, 4), torch.ones(1, 2, 16, 4)

    trained = shifted.shifted_attention(module.train(), query, query, value, None, dropout=0.5)[0]
    evaluated = shifted.shifted_attention(module.eval(), query, query, value, None, dropout=0.5)[0]

    assert (trained != 1).any()
    torch.testing.assert_close(evaluated, torch.ones_like(evaluated))


@pytest.mark.parametrize("argument", ["softcap", "s_aux", "position_bias"])
def test_unsupported_arguments_are_rejected(argument):
    q = torch.zeros(1, 2, 4, 4)

    with pytest.raises(VerificationError, match=f"does not support {argument}.*Remove load.s2_group_size_ratio"):
        shifted.shifted_attention(torch.nn.Module(), q, q, q, None, **{argument: 1.0})


def make_windowed(window):
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 16, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "sliding_window": window}
    model = MistralForCausalLM._from_config(MistralConfig(**sizes, **heads), attn_implementation="s2").train()
    shifted.enable_shifted_attention(model, 0.25, 16)
    return model


def test_a_window_shorter_than_the_examples_is_rejected():
    with pytest.raises(VerificationError, match="a window shorter than the example.*Remove load.s2_group_size_ratio"):
        make_windowed(8)(input_ids=torch.randint(64, (1, 16)))


def test_a_window_longer_than_the_examples_has_no_effect():
    ids = torch.randint(64, (1, 16))

    windowed, free = (make_windowed(window)(input_ids=ids).logits for window in (16, None))

    assert torch.equal(windowed, free)


def test_a_model_without_group_size_is_rejected():
    with pytest.raises(VerificationError, match="group size of a layer with `s2` attention is not set"):
        make_model()(input_ids=torch.randint(64, (1, 8)))


def test_a_group_of_one_token_is_rejected():
    with pytest.raises(RecipeError, match=r"load.s2_group_size_ratio: 0.1 of tokenize.max_length: 16.*higher ratio"):
        shifted.enable_shifted_attention(make_model(), 0.1, 16)


def test_a_saved_config_does_not_contain_shifted_attention(tmp_path):
    make_shifted(0.25, 16).save_pretrained(tmp_path)

    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)

    assert loaded.config._attn_implementation == "sdpa"
    assert "s2" not in (tmp_path / "config.json").read_text()
