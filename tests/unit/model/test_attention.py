"""Packed examples are isolated: logits and gradients equal those of each example alone."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, MistralConfig
from transformers.masking_utils import (
    causal_mask_function,
    chunked_causal_mask_function,
    find_packed_sequence_indices,
    packed_sequence_compatibility_function,
    sdpa_mask,
    sliding_window_causal_mask_function,
)

from tests import architectures
from tuneline.errors import VerificationError
from tuneline.model import attention
from tuneline.model.attention import bounds, isolation


def fault(error):
    return pytest.mark.xfail(strict=True, raises=error, reason="docs/upstream.md")


LENGTHS = [5, 1, 9]
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def load(folder, kind):
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation=kind)


def make_windowed(kind, window):
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 16, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "sliding_window": window}
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(MistralConfig(**sizes, **heads), attn_implementation=kind)


def separate_logits(model, ids):
    return torch.cat([model(input_ids=example[None], use_cache=False).logits[0] for example in ids.split(LENGTHS)])


@pytest.mark.parametrize("kind", ["segment", "sdpa", "eager"])
def test_packed_logits_and_gradients_equal_those_of_separate_examples(tiny_model, kind):
    model = load(tiny_model, kind)
    ids = torch.randint(3, 300, (sum(LENGTHS),))

    expected = separate_logits(model, ids)
    expected.square().sum().backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    packed = model(input_ids=ids[None], **attention.packed_inputs(LENGTHS)).logits[0]
    packed.square().sum().backward()

    torch.testing.assert_close(packed, expected, **CLOSE)
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", ["segment", "sdpa"])
@pytest.mark.parametrize("window", [3, 9, 64])
def test_windows_shorter_and_longer_than_the_examples_are_exact(kind, window):
    ids = torch.randint(64, (sum(LENGTHS),))

    packed = make_windowed(kind, window)(input_ids=ids[None], **attention.packed_inputs(LENGTHS)).logits[0]

    torch.testing.assert_close(packed, separate_logits(make_windowed("eager", window), ids), **CLOSE)


@pytest.mark.parametrize("window", [3, 64])
def test_padding_on_either_side_matches_sdpa(window):
    ids = torch.randint(64, (3, 8))
    mask = torch.ones_like(ids)
    mask[0, 5:], mask[1, :5] = 0, 0
    segment, sdpa = (
        make_windowed(kind, window)(input_ids=ids, attention_mask=mask).logits for kind in ("segment", "sdpa")
    )

    torch.testing.assert_close(segment[mask.bool()], sdpa[mask.bool()], **CLOSE)
    assert segment.isfinite().all()


def test_generation_with_a_cache_matches_sdpa(tiny_model):
    ids = torch.randint(3, 300, (2, 7))
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    options = {"attention_mask": mask, "max_new_tokens": 6, "do_sample": False}

    answers = [load(tiny_model, kind).eval().generate(ids, **options).tolist() for kind in ("segment", "sdpa")]

    assert answers[0] == answers[1]


def test_a_mask_of_ones_does_not_join_packed_examples(tiny_model):
    model, ids = load(tiny_model, "segment"), torch.randint(3, 300, (sum(LENGTHS),))
    inputs = attention.packed_inputs(LENGTHS) | {"attention_mask": torch.ones(1, len(ids), dtype=torch.long)}

    torch.testing.assert_close(model(input_ids=ids[None], **inputs).logits[0], separate_logits(model, ids), **CLOSE)


def test_a_square_mask_is_restricted_to_the_examples():
    module, q = torch.nn.Module(), torch.randn(1, 2, 6, 4)
    window = sdpa_mask(1, 6, 6, mask_function=sliding_window_causal_mask_function(3), local_size=3)

    packed, _ = attention.segment_attention(module, q, q, q, window, cu_seq_lens_q=torch.tensor([0, 4, 6]))
    first, _ = attention.segment_attention(module, *[q[:, :, :4]] * 3, window[..., :4, :4])
    second, _ = attention.segment_attention(module, *[q[:, :, 4:]] * 3, None)

    torch.testing.assert_close(packed, torch.cat([first, second], dim=1))


def test_dropout_is_applied_in_training_mode():
    q, value = torch.zeros(1, 2, 16, 4), torch.ones(1, 2, 16, 4)
    ends, module = {"cu_seq_lens_q": torch.tensor([0, 9, 16])}, torch.nn.Module()

    trained, _ = attention.segment_attention(module.train(), q, q, value, None, dropout=0.5, **ends)
    evaluated, _ = attention.segment_attention(module.eval(), q, q, value, None, dropout=0.5, **ends)

    assert (trained != 1).any()
    torch.testing.assert_close(evaluated, torch.ones_like(evaluated))


def square_of(mask, rows, tokens):
    """Convert a result of `bounds_mask` to a square mask."""
    if bounds.is_square(mask):
        return mask.expand(rows, 1, tokens, tokens)
    table = [[0, tokens]] * rows if mask is None else mask.tolist()
    example = torch.stack([torch.bucketize(torch.arange(tokens), torch.tensor(row), right=True) for row in table])
    return ((example[:, :, None] == example[:, None, :]) & torch.ones(tokens, tokens).tril().bool())[:, None]


@settings(max_examples=200, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    local=st.sampled_from([None, ("window", 1), ("window", 3), ("window", 9), ("chunk", 2), ("chunk", 5)]),
    padding=st.none() | st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=2, max_size=2),
)
def test_bounds_match_the_mask_of_transformers(lengths, local, padding):
    tokens, rows = sum(lengths), 1 if padding is None else 2
    function = causal_mask_function
    if local and local[0] == "window":
        function = sliding_window_causal_mask_function(local[1])
    elif local:
        function = chunked_causal_mask_function(local[1], torch.zeros(rows, dtype=torch.long))
    mask = None
    if padding is None:
        positions = attention.packed_inputs(lengths)["position_ids"]
        if (packed := find_packed_sequence_indices(positions)) is not None:
            function = packed_sequence_compatibility_function(function, positions, packed)
    else:
        position = torch.arange(tokens)
        mask = torch.stack([(position >= left) & (position < tokens - right) for left, right in padding])
    arguments = {"batch_size": rows, "q_length": tokens, "kv_length": tokens, "mask_function": function}
    arguments |= {"attention_mask": mask, "local_size": local[1] if local else None, "q_offset": 0, "kv_offset": 0}

    actual = square_of(bounds.bounds_mask(**arguments), rows, tokens)
    expected = sdpa_mask(**arguments, allow_is_causal_skip=False)

    real = torch.ones(rows, tokens, dtype=torch.bool) if mask is None else mask
    keep = real[:, None, :, None].expand_as(expected)  # the mask of padding tokens does not matter
    assert torch.equal(actual[keep], expected[keep])


@pytest.mark.parametrize("local", [None, 2])
def test_bounds_are_returned_if_they_determine_the_mask(local):
    positions = attention.packed_inputs(LENGTHS)["position_ids"]
    function = causal_mask_function if local is None else sliding_window_causal_mask_function(local)
    function = packed_sequence_compatibility_function(function, positions, find_packed_sequence_indices(positions))

    arguments = {"batch_size": 1, "q_length": 15, "kv_length": 15, "mask_function": function}
    mask = bounds.bounds_mask(**arguments, allow_is_causal_skip=False)

    assert bounds.is_square(mask) if local else mask.tolist() == [[0, 5, 6, 15]]


def test_bounds_of_other_rows_are_rejected():
    q = torch.zeros(1, 4, 3, 8)

    with pytest.raises(VerificationError, match="which do not match rows of 3 tokens. Set load.attention: sdpa"):
        attention.segment_attention(torch.nn.Module(), q, q, q, torch.ones(1, 3, dtype=torch.long))


@pytest.mark.parametrize("argument", ["softcap", "s_aux", "position_bias"])
def test_unsupported_arguments_are_rejected(argument):
    q = torch.zeros(1, 4, 3, 8)

    with pytest.raises(VerificationError, match=f"segment does not support {argument}.*Set load.attention: eager"):
        attention.segment_attention(torch.nn.Module(), q, q, q, None, **{argument: 1.0})


def test_isolation_is_measured(tiny_model):
    assert attention.check_isolation(load(tiny_model, "segment")) < 1e-4


def test_isolation_is_measured_on_given_examples(tiny_model):
    model = load(tiny_model, "segment").train()

    assert attention.check_isolation(model, [[[3, 4, 5], [6, 7]], [[8], [9, 10, 11]]]) < 1e-4
    assert model.training


def test_a_leak_between_examples_is_rejected(tiny_model, monkeypatch):
    unpacked = {"position_ids": torch.arange(16)[None], "use_cache": False}
    monkeypatch.setattr(isolation, "packed_inputs", lambda lengths, device: unpacked)

    with pytest.raises(VerificationError, match="attend to each other .* with load.attention: segment") as error:
        attention.check_isolation(load(tiny_model, "segment"))
    assert "tokenize.packing: false" in str(error.value)
    assert "load.attention: auto" in str(error.value)


def test_an_architecture_that_cannot_compute_packed_rows_is_rejected(tiny_model, monkeypatch):
    monkeypatch.setattr(isolation, "packed_inputs", lambda lengths, device: {"position_ids": torch.zeros(3)})

    with pytest.raises(VerificationError, match="cannot compute a packed row: .*tokenize.packing: false"):
        attention.check_isolation(load(tiny_model, "segment"))


def test_the_current_attention_is_kept_if_it_isolates(tiny_model):
    kind, difference = attention.set_isolating_attention(load(tiny_model, "sdpa"))

    assert kind == "sdpa"
    assert difference < 1e-4


@pytest.mark.parametrize("name", ["afmoe", "biogpt", "opt"])
def test_segment_is_selected_if_sdpa_leaks(name):
    model = architectures.build(name)

    kind, difference = attention.set_isolating_attention(model)

    assert (kind, model.config._attn_implementation) == ("segment", "segment")
    assert difference < 1e-4


@pytest.mark.parametrize(("name", "current"), [("mamba", "eager"), ("bloom", "eager"), ("falcon", "sdpa")])
def test_an_architecture_that_never_isolates_is_rejected_and_unchanged(name, current):
    model = architectures.build(name)

    with pytest.raises(
        VerificationError, match="No attention implementation isolates packed examples.*tokenize.packing: false"
    ):
        attention.set_isolating_attention(model)
    assert model.config._attn_implementation == current


def test_shifted_attention_is_not_replaced(tiny_model, monkeypatch):
    unpacked = {"position_ids": torch.arange(16)[None], "use_cache": False}
    monkeypatch.setattr(isolation, "packed_inputs", lambda lengths, device: unpacked)

    with pytest.raises(VerificationError, match="Tried: s2"):
        attention.set_isolating_attention(load(tiny_model, "s2"))


@fault(NotImplementedError)
def test_flex_attention_trains_on_a_cpu():
    from torch.nn.attention.flex_attention import flex_attention

    q = torch.randn(1, 1, 16, 16, requires_grad=True)
    flex_attention(q, q, q).sum().backward()


@fault(VerificationError)
@pytest.mark.parametrize("name", ["afmoe", "gpt_oss"])
def test_transformers_passes_the_mask_of_packed_rows_to_every_architecture(name):
    assert attention.check_isolation(architectures.build(name)) < 1e-4
