"""Patches change how a model computes, not its output: equal gradients in less memory, and verified kernels."""

import gc
import sys
import types
import weakref

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import CheckpointPolicy
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

from tests import architectures
from tuneline.config.sections.load import LoadConfig
from tuneline.errors import RecipeError, VerificationError
from tuneline.model import attention, kernels, patches

IDS = torch.randint(3, 60, (1, 48), generator=torch.Generator().manual_seed(0))


def make_model(attention="sdpa", **changes):
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 3}
    config = LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2, **changes)
    return LlamaForCausalLM._from_config(config, attn_implementation=attention).train()


def make_adapted(model, **changes):
    config = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "init_lora_weights": False} | changes
    torch.manual_seed(0)
    return get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **config)).train()


def gradients(model, **inputs):
    torch.manual_seed(1)
    model(input_ids=IDS, use_cache=False, **inputs).logits.float().square().mean().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_equal_gradients(actual, expected):
    assert actual.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(actual[name], gradient, rtol=1e-6, atol=1e-7, msg=name)


@pytest.mark.parametrize("kind", ["full", "selective"])
@pytest.mark.parametrize("implementation", ["sdpa", "segment", "eager"])
def test_gradient_checkpointing_does_not_change_gradients(kind, implementation):
    model = make_model(implementation)
    packed = {k: v for k, v in attention.packed_inputs([20, 1, 27]).items() if k != "use_cache"}

    patches.apply_patches(model, LoadConfig(gradient_checkpointing=kind))

    assert_equal_gradients(gradients(model, **packed), gradients(make_model(implementation), **packed))


@pytest.mark.parametrize("kind", ["full", "selective"])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_gradients_with_adapters_and_dropout_are_the_same(kind, implementation):
    model = make_model(implementation, attention_dropout=0.2)
    patches.apply_patches(model, LoadConfig(gradient_checkpointing=kind))

    actual = gradients(make_adapted(model, lora_dropout=0.3))
    expected = gradients(make_adapted(make_model(implementation, attention_dropout=0.2), lora_dropout=0.3))

    assert all("lora" in name for name in actual)
    assert_equal_gradients(actual, expected)


@pytest.mark.parametrize("kind", ["full", "selective"])
@pytest.mark.parametrize("name", ["gpt2", "mixtral", "gpt_oss", "mamba", "gemma2"])
def test_other_architectures_have_the_same_gradients(name, kind):
    model = architectures.build(name).train()

    patches.apply_patches(model, LoadConfig(gradient_checkpointing=kind))

    assert_equal_gradients(gradients(model), gradients(architectures.build(name).train()))


class LiveMemory(TorchDispatchMode):
    """Counts the bytes of tensors created in this context that are still referenced."""

    def __init__(self):
        super().__init__()
        self.storages = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self.storages[storage._cdata] = (weakref.ref(storage), storage.nbytes())
        return result

    def bytes(self):
        gc.collect()
        return sum(size for reference, size in self.storages.values() if reference() is not None)


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("implementation", ["segment", "eager"])
def test_full_saves_less_memory_than_selective_and_selective_less_than_none(implementation, adapted):
    saved_bytes = []
    for kind in ("full", "selective", "none"):
        model = make_model(implementation)
        patches.apply_patches(model, LoadConfig(gradient_checkpointing=kind))
        model = make_adapted(model) if adapted else model
        with LiveMemory() as memory:
            loss = model(input_ids=IDS.repeat(1, 3), use_cache=False).logits.sum()
        total = memory.bytes()
        del loss
        saved_bytes.append(total - memory.bytes())

    assert saved_bytes[0] < 0.5 * saved_bytes[1]
    assert saved_bytes[1] < 0.8 * saved_bytes[2]


def test_frozen_layers_stay_out_of_the_backward_pass():
    model = make_model()
    patches.apply_patches(model, LoadConfig(gradient_checkpointing="full"))
    model.requires_grad_(False)
    model.model.layers[-1].requires_grad_(True)
    states = []
    model.model.layers[-1].register_forward_pre_hook(lambda _, inputs: states.append(inputs[0]))

    trained = gradients(model)

    assert not states[0].requires_grad
    assert trained
    assert all("layers.2" in name for name in trained)


def test_an_architecture_without_gradient_checkpointing_is_rejected():
    with pytest.raises(RecipeError, match="load.gradient_checkpointing: full is not supported by .* Set .*: none"):
        patches.apply_patches(architectures.build("ctrl"), LoadConfig(gradient_checkpointing="full"))


def test_attention_with_dropout_in_its_kernel_is_recomputed():
    operation = torch.ops.aten._scaled_dot_product_flash_attention.default
    q = torch.zeros(1)

    assert (
        patches.checkpoint_policy(patches.SAVED_OPS, None, operation, q, q, q, 0.0, True) == CheckpointPolicy.MUST_SAVE
    )
    assert (
        patches.checkpoint_policy(patches.SAVED_OPS, None, operation, q, q, q, 0.1, True)
        == CheckpointPolicy.PREFER_RECOMPUTE
    )
    by_keyword = patches.checkpoint_policy(patches.SAVED_OPS, None, operation, q, q, q, dropout_p=0.1)
    assert by_keyword == CheckpointPolicy.PREFER_RECOMPUTE


@pytest.mark.xfail(strict=True, raises=RuntimeError, reason="docs/upstream.md")
def test_transformers_does_not_modify_products_of_experts_in_place(monkeypatch):
    monkeypatch.setattr(patches, "GROUPED_MM_OPS", set())
    model = architectures.build("gpt_oss").train()

    patches.apply_patches(model, LoadConfig(gradient_checkpointing="selective"))

    gradients(model)


def test_the_defaults_apply_no_patch():
    assert patches.apply_patches(make_model(), LoadConfig()) == {}


def test_decisions_are_described():
    decisions = patches.apply_patches(make_model(), LoadConfig(gradient_checkpointing="selective"))

    assert decisions["gradient_checkpointing"].startswith(
        "selective: results of matrix products and attention are saved"
    )


@pytest.mark.parametrize(
    ("name", "blocks"),
    [
        ("llama", set()),
        ("mixtral", {"MixtralSparseMoeBlock"}),
        ("qwen3_moe", {"Qwen3MoeSparseMoeBlock"}),
        ("deepseek_v3", {"DeepseekV3MoE"}),
        ("gpt_oss", {"GptOssMLP"}),
        ("llama4_text", {"Llama4TextMoe"}),
        ("granitemoe", {"GraniteMoeMoE"}),
        ("jetmoe", {"JetMoeMoA", "JetMoeMoE"}),
        ("jamba", {"JambaSparseMoeBlock"}),
    ],
)
def test_blocks_with_router_and_experts_are_found(name, blocks):
    assert {block.__name__ for block in patches.moe_blocks(architectures.build(name))} == blocks


def test_experts_in_a_list_are_found():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate = nn.Linear(4, 2)
            self.experts = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))

    assert patches.moe_blocks(nn.Sequential(Block(), Block())) == {Block}


def fake_module(monkeypatch, name, **members):
    parts = name.split(".")
    for depth in range(1, len(parts) + 1):
        module = types.ModuleType(".".join(parts[:depth]))
        monkeypatch.setitem(sys.modules, module.__name__, module)
        if depth > 1:
            setattr(sys.modules[".".join(parts[: depth - 1])], parts[depth - 1], module)
    for member, value in members.items():
        setattr(sys.modules[name], member, value)


def test_experts_are_gathered_as_a_whole_under_zero_3(monkeypatch):
    marked = []
    fake_module(monkeypatch, "deepspeed.utils", set_z3_leaf_modules=lambda model, classes: marked.extend(classes))
    model = architectures.build("mixtral")

    assert patches.apply_patches(model, LoadConfig()) == {}
    monkeypatch.setattr(patches, "is_deepspeed_zero3_enabled", lambda: True)
    decisions = patches.apply_patches(model, LoadConfig())

    assert [module_class.__name__ for module_class in marked] == ["MixtralSparseMoeBlock"]
    assert decisions == {"zero3_leaf_modules": "MixtralSparseMoeBlock are gathered as a whole"}


def simulate_machine(monkeypatch, *, gpu, packages):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(kernels, "find_spec", lambda package: object() if package in packages else None)


@pytest.mark.parametrize(
    ("gpu", "packages", "missing"),
    [
        (False, [], "a CUDA device and the package {package}"),
        (True, [], "the package {package} \\(pip install"),
        (False, ["liger_kernel", "unsloth"], "a CUDA device"),
    ],
)
@pytest.mark.parametrize(("library", "package"), [("liger", "liger_kernel"), ("unsloth", "unsloth")])
def test_kernels_that_are_not_installed_are_rejected(monkeypatch, library, package, gpu, packages, missing):
    simulate_machine(monkeypatch, gpu=gpu, packages=packages)

    with pytest.raises(RecipeError, match=f"load.kernels: {library} needs {missing.format(package=package)}.*Set"):
        patches.apply_patches(make_model(), LoadConfig(kernels=library))


def fake_liger(monkeypatch, kind="llama", factor=1.0):
    """Install a fake library with one kernel, which multiplies the output of the last norm."""
    received = {}

    def patch(model, **options):
        received.update(options)
        model.model.norm.register_forward_hook(lambda module, inputs, output: output * factor)

    simulate_machine(monkeypatch, gpu=True, packages=["liger_kernel"])
    supported = {kind: None}
    members = {"MODEL_TYPE_TO_APPLY_LIGER_FN": supported, "_apply_liger_kernel_to_instance": patch}
    fake_module(monkeypatch, "liger_kernel.transformers.monkey_patch", **members)
    return received


def test_liger_does_not_replace_the_loss(monkeypatch):
    received = fake_liger(monkeypatch)

    decisions = patches.apply_patches(make_model(), LoadConfig(kernels="liger"))

    assert received == {"cross_entropy": False, "fused_linear_cross_entropy": False}
    assert decisions["kernels"].startswith("liger for llama: ")


def test_a_model_type_without_liger_kernels_is_rejected(monkeypatch):
    fake_liger(monkeypatch, kind="mistral")

    with pytest.raises(RecipeError, match="load.kernels: liger does not support llama.* Supported: mistral"):
        patches.apply_patches(make_model(), LoadConfig(kernels="liger"))


def test_kernels_that_change_the_output_are_rejected(monkeypatch):
    fake_liger(monkeypatch, factor=1.5)

    with pytest.raises(VerificationError, match="load.kernels: liger changes the output .* Set load.kernels: none"):
        patches.apply_patches(make_model(), LoadConfig(kernels="liger"))


def fake_unsloth(monkeypatch, factor=1.0):
    def fused(self, x):
        return factor * self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))

    simulate_machine(monkeypatch, gpu=True, packages=["unsloth"])
    fake_module(monkeypatch, "unsloth.kernels", apply_lora_mlp_swiglu=fused)


def test_unsloth_fuses_adapted_layers(monkeypatch):
    fake_unsloth(monkeypatch)
    config = LoadConfig(kernels="unsloth")
    model = make_model()

    assert patches.apply_patches(model, config) == {}
    decisions = kernels.fuse_adapter(make_adapted(model), config)

    assert decisions["kernels"].startswith("unsloth: 3 adapted networks fused")
    assert model.model.layers[0].mlp.forward.__name__ == "fused"


def test_unsloth_needs_adapters_on_all_mlp_layers(monkeypatch):
    fake_unsloth(monkeypatch)
    model = make_adapted(make_model(), target_modules=["q_proj"])

    with pytest.raises(RecipeError, match="load.kernels: unsloth fuses LoRA on gate_proj, up_proj, down_proj"):
        kernels.fuse_adapter(model, LoadConfig(kernels="unsloth"))


def test_fused_adapters_that_change_the_output_are_rejected(monkeypatch):
    fake_unsloth(monkeypatch, factor=2.0)

    with pytest.raises(VerificationError, match="load.kernels: unsloth changes the output"):
        kernels.fuse_adapter(make_adapted(make_model()), LoadConfig(kernels="unsloth"))


def test_an_adapter_is_fused_only_if_configured():
    assert kernels.fuse_adapter(make_adapted(make_model()), LoadConfig()) == {}


class Probe(TrainerCallback):
    """Compares embeddings with and without training mode during a training."""

    def __init__(self):
        self.same = {}

    def on_step_begin(self, args, state, control, model, **_):
        for mode in (True, False):
            model.train(mode)
            embed = model.get_input_embeddings()
            self.same[mode] = torch.equal(embed(IDS), nn.functional.embedding(IDS, embed.weight))
        model.train()


@pytest.mark.parametrize("adapted", [False, True])
def test_neftune_adds_noise_only_in_training_mode(tmp_path, adapted):
    """NEFTune (Jain et al. 2023, arXiv:2310.05914) as implemented in transformers."""
    model = make_adapted(make_model()) if adapted else make_model()
    rows = Dataset.from_dict({"input_ids": IDS.tolist(), "labels": IDS.tolist()})
    options = {"output_dir": str(tmp_path), "use_cpu": True, "report_to": "none", "save_strategy": "no"}
    args = TrainingArguments(**options, max_steps=1, neftune_noise_alpha=5.0, disable_tqdm=True)
    probe = Probe()

    Trainer(model=model, args=args, train_dataset=rows, callbacks=[probe]).train()

    assert probe.same == {True: False, False: True}
    embed = model.train().get_input_embeddings()
    assert torch.equal(embed(IDS), nn.functional.embedding(IDS, embed.weight))
    assert not hasattr(embed, "neftune_noise_alpha")
