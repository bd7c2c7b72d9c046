"""What a method may change: found by structure, on models without weights."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

from tests import architectures
from tuneline.errors import RecipeError
from tuneline.model import targets


def shape(name: str, **changes: object) -> nn.Module:
    """Build an architecture without weights."""
    config = architectures.tiny_config(name)
    config.update(changes)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def ends(names: list[str]) -> set[str]:
    """Return the last parts of names."""
    return {name.rpartition(".")[2] for name in names}


def test_all_takes_the_linear_layers_but_the_head():
    found = targets.find_targets(shape("llama"), "all")

    assert ends(found.modules) == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert len(found.modules) == 2 * 7
    assert not found.parameters
    assert not found.left_out


def test_all_takes_what_inherits_from_linear_and_computes_the_same():
    assert "query_key_value" in ends(targets.find_targets(shape("falcon"), "all").modules)
    assert "c_attn" in ends(targets.find_targets(shape("gpt2"), "all").modules)


def test_all_takes_experts_and_shared_experts_and_leaves_what_chooses_them():
    found = targets.find_targets(shape("qwen3_next"), "all")

    assert ends(found.parameters) == {"gate_up_proj", "down_proj"}
    assert any(".shared_expert.gate_proj" in name for name in found.modules)
    assert {name.rpartition(".")[2]: why for name, why in found.left_out.items()} == {
        "shared_expert_gate": targets.IS_ROUTER
    }


@pytest.mark.parametrize("name", ["llama4_text", "phimoe"])
def test_a_router_that_returns_a_tuple_is_left_out(name):
    left_out = targets.find_targets(shape(name), "all").left_out

    assert {name.rpartition(".")[2]: why for name, why in left_out.items()} == {"router": targets.NOT_LINEAR}


def test_a_gate_of_attention_is_no_router():
    found = targets.find_targets(shape("minimax"), "all")

    assert "output_gate" in ends(found.modules)


def test_layers_that_a_kernel_reads_past_are_left_out():
    found = targets.find_targets(shape("mamba"), "all")

    assert ends(found.modules) == {"in_proj"}
    assert {name.rpartition(".")[2] for name, why in found.left_out.items() if why == targets.BYPASSED} == {
        "x_proj",
        "dt_proj",
        "out_proj",
    }


def test_a_matrix_of_several_layers_is_left_out():
    found = targets.find_targets(shape("zamba"), "all")

    assert {"q_proj", "down_proj"} <= {
        n.rpartition(".")[2] for n, why in found.left_out.items() if why == targets.SHARES_MATRIX
    }


def test_what_picks_tokens_is_left_out():
    left_out = targets.find_targets(shape("deepseek_v32"), "all").left_out

    assert left_out
    assert all(".indexer." in name and why == targets.IS_INDEXER for name, why in left_out.items())


def test_towers_for_images_are_left_out():
    found = targets.find_targets(shape("gemma3"), "all")

    assert all(name.startswith("model.language_model.") for name in found.modules)
    assert any("vision_tower" in name and why == targets.OUTSIDE_DECODER for name, why in found.left_out.items())


def test_experts_that_peft_cannot_adapt_are_named():
    found = targets.find_targets(shape("dbrx"), "all")

    assert not found.parameters
    assert ends([name for name, why in found.left_out.items() if why == targets.FLATTENED_EXPERTS]) == {
        "w1",
        "v1",
        "w2",
    }


def test_a_name_is_matched_at_its_end():
    found = targets.find_targets(shape("llama"), ["q_proj", "model.layers.1.mlp.up_proj"])

    assert found.modules == [
        "model.layers.0.self_attn.q_proj",
        "model.layers.1.self_attn.q_proj",
        "model.layers.1.mlp.up_proj",
    ]


def test_experts_can_be_named():
    found = targets.find_targets(shape("mixtral"), ["experts.gate_up_proj"])

    assert found.parameters == [f"model.layers.{i}.mlp.experts.gate_up_proj" for i in range(2)]
    assert not found.modules


def test_a_router_can_be_named():
    assert targets.find_targets(shape("qwen2_moe"), ["shared_expert_gate"]).modules


def test_a_name_in_several_parts_takes_those_that_can_be_adapted():
    found = targets.find_targets(shape("gemma3"), ["q_proj"])

    assert all(".language_model." in name for name in found.modules)
    assert any("vision_tower" in name for name in found.left_out)


def test_an_unknown_name_gets_the_nearest_one():
    with pytest.raises(RecipeError, match=r"method.target_modules: 'q_porj' is no layer.*mean 'q_proj'\?.*Known: down"):
        targets.find_targets(shape("llama"), ["q_porj"])


def test_a_container_is_no_target():
    with pytest.raises(RecipeError, match="model.layers.0.mlp cannot be adapted: it is a LlamaMLP"):
        targets.find_targets(shape("llama"), ["mlp"])


def test_a_layer_that_cannot_be_adapted_says_why():
    with pytest.raises(RecipeError, match="out_proj cannot be adapted: its weight is read past the layer"):
        targets.find_targets(shape("mamba"), ["in_proj", "out_proj"])


@pytest.mark.parametrize("name", ["embed_tokens", "lm_head"])
def test_a_tied_embedding_is_refused(name):
    with pytest.raises(RecipeError, match="share one matrix.*method.modules_to_save"):
        targets.find_targets(shape("llama", tie_word_embeddings=True), ["q_proj", name])


def test_an_embedding_of_its_own_can_be_named():
    found = targets.find_targets(shape("llama", tie_word_embeddings=False), ["embed_tokens", "lm_head"])

    assert found.modules == ["model.embed_tokens", "lm_head"]


def test_a_model_without_linear_layers_has_no_targets():
    with pytest.raises(RecipeError, match="no linear layers"):
        targets.find_targets(nn.Embedding(2, 2), "all")


def test_a_rank_above_a_layer_is_refused():
    model = shape("llama")
    found = targets.find_targets(model, "all")

    targets.check_rank(model, found, 32, "method.r")
    with pytest.raises(RecipeError, match=r"method.r: rank 33 is above .*k_proj \(32 x 64\).*at most 32"):
        targets.check_rank(model, found, 33, "method.r")


def test_a_rank_above_an_expert_is_refused():
    model = shape("qwen3_moe")
    found = targets.find_targets(model, ["experts.down_proj"])

    with pytest.raises(RecipeError, match=r"experts.down_proj \(64 x 32\)"):
        targets.check_rank(model, found, 33, "method.r")


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
    found, layers = targets.decoder_layers(shape(name))

    assert found == prefix
    assert len(layers) == 2
    assert targets.attention_and_mlp(layers[0]) == parts


def test_experts_in_a_list_are_no_layers():
    layer = nn.ModuleDict({"mlp": nn.ModuleList(nn.Sequential(nn.Linear(2, 2)) for _ in range(8))})
    model = nn.ModuleDict({"layers": nn.ModuleList([layer, nn.Sequential(nn.Linear(2, 2))])})

    assert targets.decoder_layers(model)[0] == "layers"


def test_a_layer_that_is_no_list_has_no_layers():
    with pytest.raises(RecipeError, match="has no list of layers"):
        targets.decoder_layers(nn.Linear(2, 2))


def test_quantized_layers_are_found(tmp_path):
    build_tiny().save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=BitsAndBytesConfig(load_in_4bit=True))

    found = targets.find_targets(model, "all")

    assert len(found.modules) == 7
    assert targets.find_targets(build_tiny(), "all") == found
    with pytest.raises(RecipeError, match=r"\(16 x 32\)"):
        targets.check_rank(model, found, 17, "method.r")


def test_without_what_is_read_past_mamba_trains_in_four_bits(tmp_path):
    model = architectures.build("mamba")
    skipped = [*targets.bypassed_layers(model), "lm_head"]
    model.save_pretrained(tmp_path)
    about = BitsAndBytesConfig(load_in_4bit=True, llm_int8_skip_modules=skipped)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=about)
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
