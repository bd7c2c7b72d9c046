"""Levers keep the results, and are disabled if they are not supported or not correct."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM
from transformers.models.llama import modeling_llama

from tuneline.config.training.base import LeversConfig
from tuneline.data.schema import IGNORE_INDEX
from tuneline.model.attention import bounds
from tuneline.model.load import load_model
from tuneline.model.methods import families
from tuneline.train import token_losses
from tuneline.train.collate import collate
from tuneline.train.levers import attention, fused, head, pointwise
from tuneline.train.levers.apply import apply_levers

LORA = families["lora"]
COMPUTED = ("head_loss", "fused_lora", "blocked_attention", "fused_norms", "fused_rotation", "fused_gates")
"""Levers that change the computation; the other one keeps memory."""


def row(trained_from=3):
    ids = [(7 * i) % 300 + 3 for i in range(40)]
    labels = [token if i % 20 >= trained_from else IGNORE_INDEX for i, token in enumerate(ids)]
    return collate([{"input_ids": ids, "labels": labels, "lengths": [20, 20]}])


def make_adapted_model(folder, dtype=torch.float32, **options):
    torch.manual_seed(0)
    model = load_model(folder, dtype=dtype, attention="segment")
    model = get_peft_model(model, LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": "all-linear", **options}))
    for name, part in model.named_parameters():
        if part.requires_grad:
            part.data = part.data.float()
        if "lora_B" in name:
            part.data.normal_(0, 0.05)
    return model.train()


def loss_and_gradients(model, loss):
    losses, _ = loss()
    trained = [part for part in model.parameters() if part.requires_grad]
    mean = losses.mean()
    return float(mean.detach()), torch.cat([g.flatten() for g in torch.autograd.grad(mean, trained)])


def enable_levers(model, family=LORA, **config):
    return apply_levers(family, model, LeversConfig(keep_memory=False, **config), row(), None)


@pytest.mark.parametrize("chunk", [1, 7, 384])
@pytest.mark.parametrize("names", [*((name,) for name in COMPUTED), COMPUTED], ids=str)
def test_loss_and_gradients_equal_those_of_the_plain_model(tiny_model, monkeypatch, names, chunk):
    monkeypatch.setattr(head, "CHUNK_SIZE", chunk)
    model = make_adapted_model(tiny_model)
    plain, gradients = loss_and_gradients(model, lambda: token_losses.token_losses(LORA, model, row()))

    levers = enable_levers(model, **{name: name in names for name in COMPUTED})
    fast, others = loss_and_gradients(model, lambda: levers.token_losses(row()))

    assert {name for name in names if levers.decisions[f"levers.{name}"].startswith("on, ")} == set(names)
    assert fast == pytest.approx(plain, rel=1e-6)
    assert float((gradients - others).norm() / gradients.norm()) < 1e-5


def test_the_loss_equals_that_of_transformers_on_each_example_alone(tiny_model):
    model = make_adapted_model(tiny_model)
    levers = enable_levers(model)
    packed = row()

    total, count = 0.0, 0
    for start in (0, 20):
        ids, labels = (packed[name][:, start : start + 20] for name in ("input_ids", "labels"))
        trained = int((labels[0, 1:] != IGNORE_INDEX).sum())
        loss = model(input_ids=ids, labels=labels, use_cache=False).loss
        total, count = total + float(loss.detach()) * trained, count + trained

    losses, where = levers.token_losses(packed)
    assert len(losses) == len(where) == count
    assert float(losses.detach().sum()) == pytest.approx(total, rel=1e-5)


def test_the_verification_restores_weights_and_random_numbers(tiny_model):
    model = make_adapted_model(tiny_model)
    for name, part in model.named_parameters():
        if "lora_B" in name:
            part.data.zero_()
    before = {name: part.detach().clone() for name, part in model.named_parameters()}
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)

    enable_levers(model)

    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(before[name], part) for name, part in model.named_parameters())
    assert all(part.grad is None for part in model.parameters())


def test_removing_levers_restores_the_plain_model(tiny_model):
    model = make_adapted_model(tiny_model)
    rotate = modeling_llama.apply_rotary_pos_emb
    levers = enable_levers(model)
    assert modeling_llama.apply_rotary_pos_emb is not rotate
    assert model.config._attn_implementation == "blocked"
    assert sum("forward" in vars(module) for module in model.modules()) > len(levers.fused_layers) > 0

    levers.remove()

    assert not any("forward" in vars(module) for module in model.modules())
    assert modeling_llama.apply_rotary_pos_emb is rotate
    assert model.config._attn_implementation == "segment"
    assert not levers.head_loss


@pytest.mark.parametrize("options", [{"lora_dropout": 0.1}, {"use_dora": True}, {"lora_bias": True}], ids=str)
def test_layers_beyond_plain_lora_are_not_fused(tiny_model, options):
    levers = enable_levers(make_adapted_model(tiny_model, **options))

    assert "no layer has a plain LoRA" in levers.decisions["levers.fused_lora"]
    assert levers.decisions["levers.head_loss"].startswith("on, ")


def test_disabled_adapters_give_the_base_model(tiny_model):
    model = make_adapted_model(tiny_model)
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    assert enable_levers(model).fused_layers
    ids = torch.arange(3, 23)[None]

    with model.disable_adapter(), torch.no_grad():
        assert torch.allclose(model(ids).logits, base(ids).logits, atol=1e-5)


def test_a_trained_head_disables_the_head_loss(tiny_model):
    levers = enable_levers(load_model(tiny_model, attention="segment").train(), families["full"])

    assert levers.decisions["levers.head_loss"] == "disabled: the head is trained"


def test_a_method_with_virtual_tokens_disables_the_head_loss(tiny_model):
    assert (
        head.unsupported_reason(families["prompt"], make_adapted_model(tiny_model))
        == "method prompt computes its own logits"
    )


@pytest.mark.parametrize("name", head.LOGIT_SCALING_KEYS)
def test_a_model_that_changes_its_logits_disables_the_head_loss(tiny_model, name):
    model = make_adapted_model(tiny_model)
    setattr(model.get_base_model().config, name, 0.5)

    assert name in head.unsupported_reason(LORA, model)


def test_a_lever_with_wrong_results_is_disabled(tiny_model, monkeypatch):
    plain = fused._FusedLora.apply

    def wrong(x, scalings, *tensors):
        return plain(x, tuple(1.5 * scaling for scaling in scalings), *tensors)

    monkeypatch.setattr(fused, "_FusedLora", type("Wrong", (), {"apply": staticmethod(wrong)}))
    levers = enable_levers(make_adapted_model(tiny_model))

    assert levers.decisions["levers.fused_lora"].startswith("disabled: loss or gradients differ")
    assert not levers.fused_layers
    assert levers.head_loss


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_a_float32_adapter_trains_with_computation_in_16_bits(tiny_model, dtype):
    model = make_adapted_model(tiny_model, dtype)
    levers = apply_levers(LORA, model, LeversConfig(keep_memory=False), row(), torch.bfloat16)

    assert levers.decisions["levers.fused_lora"].startswith("on, ")
    with torch.autocast("cpu", torch.bfloat16):
        losses, _ = levers.token_losses(row())
    losses.sum().backward()
    assert all(part.grad.dtype == torch.float32 for part in model.parameters() if part.requires_grad)


def test_selective_checkpointing_disables_fused_layers(tiny_model):
    model = make_adapted_model(tiny_model)

    levers = apply_levers(LORA, model, LeversConfig(keep_memory=False), row(), None, recomputes_parts=True)

    assert "disabled: load.gradient_checkpointing: selective" in levers.decisions["levers.fused_lora"]
    assert not levers.fused_layers


def record_operations(monkeypatch):
    """Return a list that collects the number of layers per operation."""
    plain, calls = fused._FusedLora.apply, []

    def counting(x, scalings, *tensors):
        calls.append(len(scalings))
        return plain(x, scalings, *tensors)

    monkeypatch.setattr(fused, "_FusedLora", type("Counting", (), {"apply": staticmethod(counting)}))
    return calls


@pytest.mark.parametrize(
    ("options", "each_layer"),
    [({}, [3, 1, 2, 1]), ({"target_modules": ["q_proj", "v_proj", "up_proj"]}, [2, 1])],
    ids=str,
)
def test_layers_with_the_same_input_are_one_operation(tiny_model, monkeypatch, options, each_layer):
    model = make_adapted_model(tiny_model, **options)
    enable_levers(model)
    calls = record_operations(monkeypatch)

    model(torch.arange(3, 23)[None])

    assert calls == each_layer * model.config.num_hidden_layers


def test_layers_with_different_inputs_are_computed_separately(tiny_model, monkeypatch):
    model = make_adapted_model(tiny_model).eval()
    attention_of = model.get_base_model().model.layers[0].self_attn
    x, other = torch.randn(2, 1, 5, model.config.hidden_size)

    def outputs():
        return [layer(y) for layer, y in ((attention_of.q_proj, x), (attention_of.k_proj, other)) for _ in range(2)]

    plain = outputs()
    enable_levers(model)
    calls = record_operations(monkeypatch)

    assert all(torch.allclose(one, two, atol=1e-5) for one, two in zip(plain, outputs(), strict=True))
    assert calls == [3, 1, 1, 1]


def test_levers_that_are_off_change_nothing(tiny_model):
    levers = enable_levers(make_adapted_model(tiny_model), **dict.fromkeys(COMPUTED, False))

    assert set(levers.decisions.values()) == {"off, as the recipe says"}
    assert not levers.head_loss
    assert not levers.fused_layers
    assert not levers.undo


@pytest.mark.parametrize("max_stored", [0, 256])
@pytest.mark.parametrize("block", [3, 64])
def test_blocked_attention_equals_that_of_torch_within_each_example(monkeypatch, block, max_stored):
    monkeypatch.setattr(attention, "BLOCK_SIZE", block)
    monkeypatch.setattr(attention, "MAX_STORED_LENGTH", max_stored)
    torch.manual_seed(0)
    tokens = [torch.randn(1, 17, heads, 8, dtype=torch.float64, requires_grad=True) for heads in (6, 2, 2)]
    q, k, v = (x.transpose(1, 2) for x in tokens)
    ends, weight = [0, 7, 8, 17], torch.randn(1, 17, 6, 8, dtype=torch.float64)

    output = attention._BlockedAttention.apply(q, k, v, ends, 0.3)
    expected = bounds.attend_within_bounds(q, k, v, ends, scale=0.3).transpose(1, 2)

    assert torch.allclose(output, expected, atol=1e-12)
    for one, other in zip(
        *(torch.autograd.grad((out * weight).sum(), tokens) for out in (output, expected)), strict=True
    ):
        assert torch.allclose(one, other, atol=1e-12)


@pytest.mark.parametrize(
    ("operation", "shapes"),
    [
        (lambda x: pointwise._Norm.apply(x, torch.linspace(0.5, 2, 6, dtype=torch.float64), 1e-5), [(2, 3, 6)]),
        (lambda x: pointwise._Rotation.apply(x, *torch.randn(2, 1, 3, 6, dtype=torch.float64)), [(2, 3, 6)]),
        (pointwise._Gate.apply, [(4, 5), (4, 5)]),
    ],
    ids=["norm", "rotation", "gate"],
)
def test_gradients_equal_finite_differences(operation, shapes):
    def seeded(*inputs):
        torch.manual_seed(1)
        return operation(*inputs)

    torch.manual_seed(0)
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]

    assert torch.autograd.gradcheck(seeded, inputs)


def test_all_levers_are_on_in_16_bits(tiny_model):
    model = make_adapted_model(tiny_model, torch.bfloat16)

    levers = apply_levers(LORA, model, LeversConfig(keep_memory=False), row(), torch.bfloat16)

    assert all(levers.decisions[f"levers.{name}"].startswith("on, ") for name in COMPUTED)
    levers.remove()


def plain_norm(x, weight):
    norm = modeling_llama.LlamaRMSNorm(x.shape[-1], eps=1e-5)
    norm.weight = torch.nn.Parameter(weight, requires_grad=False)
    return norm(x)


def plain_rotation(x, cos, sin):
    return modeling_llama.apply_rotary_pos_emb(x, x, cos[:, 0], sin[:, 0])[0]


def plain_attention(q, k, v):
    ends, options = [0, 37, 101], {"dropout_p": 0.0, "scale": 0.25}
    return bounds.attend_within_bounds(q, k, v, ends, **options).transpose(1, 2)


IN_16_BITS = {
    "norm": (lambda x, w: pointwise._Norm.apply(x, w, 1e-5), plain_norm, [(1, 50, 64), (64,)]),
    "rotation": (pointwise._Rotation.apply, plain_rotation, [(1, 4, 50, 16), (1, 1, 50, 16), (1, 1, 50, 16)]),
    "attention": (
        lambda q, k, v: attention._BlockedAttention.apply(q, k, v, [0, 37, 101], 0.25),
        plain_attention,
        [(1, 4, 101, 16), (1, 2, 101, 16), (1, 2, 101, 16)],
    ),
}


@pytest.mark.parametrize("name", IN_16_BITS)
def test_operations_in_16_bits_round_no_more_than_the_plain_code(name):
    fused, plain, shapes = IN_16_BITS[name]
    torch.manual_seed(0)
    inputs = [torch.randn(shape).bfloat16() for shape in shapes]
    gradient = None

    def loss_and_gradients(operation, kind):
        nonlocal gradient
        leaves = [x.to(kind).requires_grad_(i == 0 or name == "attention") for i, x in enumerate(inputs)]
        out = operation(*leaves)
        gradient = torch.randn(out.shape).bfloat16() if gradient is None else gradient
        gradients = torch.autograd.grad(out, [x for x in leaves if x.requires_grad], gradient.to(kind))
        return [x.float() for x in (out, *gradients)]

    exact = loss_and_gradients(plain, torch.float32)
    fused_results, plain_results = (loss_and_gradients(operation, torch.bfloat16) for operation in (fused, plain))

    for reference, a, b in zip(exact, fused_results, plain_results, strict=True):
        assert (a - reference).norm() <= 1.3 * (b - reference).norm()
        assert (a - reference).norm() <= 0.01 * reference.norm()


def test_other_attention_or_dropout_disables_blocked_attention(tiny_model):
    model = make_adapted_model(tiny_model)
    model.get_base_model().config.attention_dropout = 0.1
    assert attention.unsupported_reason(model, torch.float32) == "the model uses attention dropout (0.1)"

    model.get_base_model().set_attn_implementation("sdpa")
    assert attention.unsupported_reason(model, torch.float32) == "the attention is sdpa"


def test_trained_norms_are_not_fused(tiny_model):
    levers = enable_levers(load_model(tiny_model, attention="segment").train(), families["full"])

    assert levers.decisions["levers.fused_norms"] == "disabled: the architecture has no module of the supported form"


def test_a_row_with_padding_uses_segment_attention(tiny_model):
    model = make_adapted_model(tiny_model).eval()
    ids = torch.arange(3, 23)[None]
    mask = torch.ones_like(ids)
    mask[:, :4] = 0
    plain = model(input_ids=ids, attention_mask=mask).logits
    enable_levers(model)

    assert torch.allclose(model(input_ids=ids, attention_mask=mask).logits, plain, atol=1e-5)


def test_a_rotation_of_another_form_is_disabled(tiny_model, monkeypatch):
    def interleaved(q, k, cos, sin):
        turned = [torch.stack((-x[..., 1::2], x[..., ::2]), -1).flatten(-2) for x in (q, k)]
        return tuple(x * cos[:, None] + y * sin[:, None] for x, y in zip((q, k), turned, strict=True))

    monkeypatch.setattr(modeling_llama, "apply_rotary_pos_emb", interleaved)
    levers = enable_levers(make_adapted_model(tiny_model))

    assert levers.decisions["levers.fused_rotation"].startswith("disabled: loss or gradients differ")
    assert modeling_llama.apply_rotary_pos_emb is interleaved
    assert levers.decisions["levers.fused_norms"].startswith("on, ")
    levers.remove()


def test_a_norm_with_further_inputs_is_not_fused(tiny_model):
    class GatedRMSNorm(modeling_llama.LlamaRMSNorm):
        def forward(self, hidden_states, gate=None):
            return super().forward(hidden_states if gate is None else hidden_states * gate)

    norm = GatedRMSNorm(4).requires_grad_(False)

    assert pointwise.find_norms(norm) == []
    assert pointwise.find_norms(modeling_llama.LlamaRMSNorm(4).requires_grad_(False))
