"""Target layers of methods, layers by structure on the meta device."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

from tests import architectures
from tuneline.errors import RecipeError
from tuneline.model import targets


def build_meta(name: str, **changes: object) -> nn.Module:
    """Build an architecture on the meta device."""
    config = architectures.tiny_config(name)
    config.update(changes)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def suffixes(names: list[str]) -> set[str]:
    """Return the last part of each name."""
    return {name.rpartition(".")[2] for name in names}


def test_all_selects_the_linear_layers_except_the_head():
    layers = targets.find_targets(build_meta("llama"), "all")

    assert suffixes(layers.modules) == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert len(layers.modules) == 2 * 7
    assert not layers.parameters
    assert not layers.excluded


def test_all_selects_subclasses_of_linear_with_the_same_computation():
    assert "query_key_value" in suffixes(targets.find_targets(build_meta("falcon"), "all").modules)
    assert "c_attn" in suffixes(targets.find_targets(build_meta("gpt2"), "all").modules)


def test_all_selects_experts_and_excludes_routers():
    layers = targets.find_targets(build_meta("qwen3_next"), "all")

    assert suffixes(layers.parameters) == {"gate_up_proj", "down_proj"}
    assert any(".shared_expert.gate_proj" in name for name in layers.modules)
    assert {name.rpartition(".")[2]: why for name, why in layers.excluded.items()} == {
        "shared_expert_gate": targets.IS_ROUTER
    }


@pytest.mark.parametrize("name", ["llama4_text", "phimoe"])
def test_a_router_that_returns_a_tuple_is_excluded(name):
    excluded = targets.find_targets(build_meta(name), "all").excluded

    assert {name.rpartition(".")[2]: why for name, why in excluded.items()} == {"router": targets.NOT_LINEAR}


def test_a_gate_of_attention_is_not_a_router():
    layers = targets.find_targets(build_meta("minimax"), "all")

    assert "output_gate" in suffixes(layers.modules)


def test_layers_bypassed_by_a_kernel_are_excluded():
    layers = targets.find_targets(build_meta("mamba"), "all")

    assert suffixes(layers.modules) == {"in_proj"}
    assert {name.rpartition(".")[2] for name, why in layers.excluded.items() if why == targets.BYPASSED} == {
        "x_proj",
        "dt_proj",
        "out_proj",
    }


def test_a_matrix_shared_by_several_layers_is_excluded():
    layers = targets.find_targets(build_meta("zamba"), "all")

    assert {"q_proj", "down_proj"} <= {
        n.rpartition(".")[2] for n, why in layers.excluded.items() if why == targets.SHARES_MATRIX
    }


def test_indexers_of_sparse_attention_are_excluded():
    excluded = targets.find_targets(build_meta("deepseek_v32"), "all").excluded

    assert excluded
    assert all(".indexer." in name and why == targets.IS_INDEXER for name, why in excluded.items())


def test_vision_towers_are_excluded():
    layers = targets.find_targets(build_meta("gemma3"), "all")

    assert all(name.startswith("model.language_model.") for name in layers.modules)
    assert any("vision_tower" in name and why == targets.OUTSIDE_DECODER for name, why in layers.excluded.items())


def test_experts_that_peft_cannot_adapt_are_reported():
    layers = targets.find_targets(build_meta("dbrx"), "all")

    assert not layers.parameters
    assert suffixes([name for name, why in layers.excluded.items() if why == targets.FLATTENED_EXPERTS]) == {
        "w1",
        "v1",
        "w2",
    }


def test_names_are_matched_by_suffix():
    layers = targets.find_targets(build_meta("llama"), ["q_proj", "model.layers.1.mlp.up_proj"])

    assert layers.modules == [
        "model.layers.0.self_attn.q_proj",
        "model.layers.1.self_attn.q_proj",
        "model.layers.1.mlp.up_proj",
    ]


def test_experts_can_be_named():
    layers = targets.find_targets(build_meta("mixtral"), ["experts.gate_up_proj"])

    assert layers.parameters == [f"model.layers.{i}.mlp.experts.gate_up_proj" for i in range(2)]
    assert not layers.modules


def test_a_router_can_be_named():
    assert targets.find_targets(build_meta("qwen2_moe"), ["shared_expert_gate"]).modules


def test_a_name_in_several_parts_selects_the_adaptable_layers():
    layers = targets.find_targets(build_meta("gemma3"), ["q_proj"])

    assert all(".language_model." in name for name in layers.modules)
    assert any("vision_tower" in name for name in layers.excluded)


def test_an_unknown_name_suggests_the_nearest_one():
    with pytest.raises(
        RecipeError, match=r"method.target_modules: 'q_porj' is not a layer.*mean 'q_proj'\?.*Known: down"
    ):
        targets.find_targets(build_meta("llama"), ["q_porj"])


def test_a_container_is_not_a_target():
    with pytest.raises(RecipeError, match="model.layers.0.mlp cannot be adapted: it is a LlamaMLP"):
        targets.find_targets(build_meta("llama"), ["mlp"])


def test_the_error_for_an_unadaptable_layer_has_the_reason():
    with pytest.raises(RecipeError, match="out_proj cannot be adapted: its weight is used without calling the layer"):
        targets.find_targets(build_meta("mamba"), ["in_proj", "out_proj"])


@pytest.mark.parametrize("name", ["embed_tokens", "lm_head"])
def test_a_tied_embedding_is_rejected(name):
    with pytest.raises(RecipeError, match="share one matrix.*method.modules_to_save"):
        targets.find_targets(build_meta("llama", tie_word_embeddings=True), ["q_proj", name])


def test_an_untied_embedding_can_be_named():
    layers = targets.find_targets(build_meta("llama", tie_word_embeddings=False), ["embed_tokens", "lm_head"])

    assert layers.modules == ["model.embed_tokens", "lm_head"]


def test_a_model_without_linear_layers_has_no_targets():
    with pytest.raises(RecipeError, match="no linear layers"):
        targets.find_targets(nn.Embedding(2, 2), "all")


def test_a_rank_above_a_layer_is_rejected():
    model = build_meta("llama")
    layers = targets.find_targets(model, "all")

    targets.check_rank(model, layers, 32, "method.r")
    with pytest.raises(RecipeError, match=r"method.r: rank 33 is above .*k_proj \(32 x 64\).*at most 32"):
        targets.check_rank(model, layers, 33, "method.r")


def test_a_rank_above_an_expert_is_rejected():
    model = build_meta("qwen3_moe")
    layers = targets.find_targets(model, ["experts.down_proj"])

    with pytest.raises(RecipeError, match=r"experts.down_proj \(64 x 32\)"):
        targets.check_rank(model, layers, 33, "method.r")


@pytest.mark.parametrize(
    ("name", "prefix", "parts"),
    [
        ("llama", "model.layers", {"attention": "self_attn", "mlp": "mlp"}),
        ("gpt2", "transformer.h", {"attention": "attn", "mlp": "mlp"}),
        ("opt", "model.decoder.layers", {"attention": "self_attn", "mlp": "fc2"}),
        ("gemma3", "model.language_model.layers", {"attention": "self_attn", "mlp": "mlp"}),
        ("git", "git.encoder.layer", {"attention": "attention"}),
        ("dbrx", "transformer.blocks", {"attention": "norm_attn_norm.attn", "mlp": "ffn"}),
        ("mamba", "backbone.layers", {"attention": "mixer"}),
        ("granitemoehybrid", "model.layers", {"attention": "mamba", "mlp": "block_sparse_moe"}),
    ],
)
def test_layers_and_their_parts_are_found(name, prefix, parts):
    name, layers = targets.decoder_layers(build_meta(name))

    assert name == prefix
    assert len(layers) == 2
    assert targets.attention_and_mlp(layers[0]) == parts


def test_a_list_of_experts_is_not_a_list_of_layers():
    layer = nn.ModuleDict({"mlp": nn.ModuleList(nn.Sequential(nn.Linear(2, 2)) for _ in range(8))})
    model = nn.ModuleDict({"layers": nn.ModuleList([layer, nn.Sequential(nn.Linear(2, 2))])})

    assert targets.decoder_layers(model)[0] == "layers"


def test_a_model_without_a_list_of_layers_is_rejected():
    with pytest.raises(RecipeError, match="has no list of layers"):
        targets.decoder_layers(nn.Linear(2, 2))


def test_quantized_layers_are_found(tmp_path):
    build_tiny().save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=BitsAndBytesConfig(load_in_4bit=True))

    layers = targets.find_targets(model, "all")

    assert len(layers.modules) == 7
    assert targets.find_targets(build_tiny(), "all") == layers
    with pytest.raises(RecipeError, match=r"\(16 x 32\)"):
        targets.check_rank(model, layers, 17, "method.r")


def test_mamba_trains_in_four_bits_without_bypassed_layers(tmp_path):
    model = architectures.build("mamba")
    skipped = [*targets.bypassed_layers(model), "lm_head"]
    model.save_pretrained(tmp_path)
    quantization = BitsAndBytesConfig(load_in_4bit=True, llm_int8_skip_modules=skipped)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=quantization)
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=targets.find_targets(model, "all").modules))

    ids = torch.arange(3, 19)
    cross_entropy(adapted(input_ids=ids[None], use_cache=False).logits[0, :-1].float(), ids[1:]).backward()

    assert all(p.grad is not None and p.grad.any() for n, p in adapted.named_parameters() if ".lora_B." in n)


def build_tiny() -> LlamaForCausalLM:
    """Build a Llama of one layer."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=64,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
        )
    )
