"""Prompt learning: positions of the logits, and architectures without support for virtual tokens."""

import pytest
import torch
from transformers import DeepseekV3Config, MambaConfig, MambaForCausalLM

from tests.unit.model.methods import bases
from tests.unit.model.methods.bases import IDS, llama, logits, max_difference
from tuneline.config.sections.method import PrefixMethod, PromptMethod, PTuningMethod
from tuneline.errors import RecipeError
from tuneline.model.attention import packed_inputs
from tuneline.model.methods import families

METHODS = {
    "prefix": PrefixMethod(type="prefix", num_virtual_tokens=5),
    "prompt": PromptMethod(type="prompt", num_virtual_tokens=5),
    "p_tuning": PTuningMethod(type="p_tuning", num_virtual_tokens=5, encoder_hidden_size=16),
}
every_method = pytest.mark.parametrize("name", METHODS)


def trained_model(name, build=llama):
    return bases.attach_and_train(name, METHODS[name], build)


@torch.no_grad()
def reference_logits(name, model):
    """Prepend the embeddings, or write the cache and feed one token at a time."""
    base = model.get_base_model()
    if name != "prefix":
        embeds = torch.cat([model.get_prompt(1), model.word_embeddings(IDS)], dim=1)
        return base(inputs_embeds=embeds).logits[0, 5:]
    cache = model.get_prompt(1)
    return torch.cat([base(input_ids=token[:, None], past_key_values=cache).logits[0] for token in IDS.T])


@every_method
@pytest.mark.parametrize("attention", ["eager", "sdpa", "segment"])
def test_logits_match_those_of_the_text_after_the_virtual_tokens(name, attention):
    def build():
        model = llama()
        model.set_attn_implementation(attention)
        return model

    model = trained_model(name, build)

    assert max_difference(logits(model, name), reference_logits(name, model)) <= 1e-5


@every_method
def test_selected_positions_count_from_the_first_text_token(name):
    model = trained_model(name)
    keep = torch.tensor([0, 3, 10])

    with torch.no_grad():
        selected = families[name].logits(model, {"input_ids": IDS, **packed_inputs([12])}, keep)

    assert max_difference(selected, logits(model, name)[keep]) <= 1e-5


@every_method
def test_a_token_does_not_change_earlier_logits(name):
    model = trained_model(name)
    other = IDS.clone()
    other[0, 8:] = 1

    assert max_difference(logits(model, name, other)[:8], logits(model, name)[:8]) <= 1e-5


@every_method
def test_prompt_learning_does_not_support_packing(name):
    assert not families[name].supports_packing


def test_only_prompt_tuning_adds_prefix_logits():
    numbers = {name: families[name].num_prefix_logits(trained_model(name)) for name in METHODS}

    assert numbers == {"prefix": 0, "prompt": 5, "p_tuning": 5}


def test_a_disabled_prompt_adds_no_prefix_logits():
    model = trained_model("prompt")

    with families["prompt"].disable_adapter(model):
        assert families["prompt"].num_prefix_logits(model) == 0
    assert families["prompt"].num_prefix_logits(model) == 5


def test_a_prompt_is_initialized_from_the_vocabulary():
    model = bases.attach("prompt", METHODS["prompt"])
    embeddings = model.get_input_embeddings().weight

    starts = model.prompt_encoder["default"].embedding.weight

    assert all((embeddings == start).all(dim=1).any() for start in starts)


@pytest.mark.parametrize(
    "method", [METHODS["p_tuning"], METHODS["prefix"].model_copy(update={"prefix_projection": True})]
)
def test_tokens_of_an_encoder_network_cannot_be_trained_further(method, tmp_path):
    family = families[method.type]
    family.save(bases.attach(method.type, method), tmp_path)

    with pytest.raises(RecipeError, match="computed by a small network during training"):
        family.check_continuation(tmp_path, method)
    with pytest.raises(RecipeError, match="computed by a small network during training"):
        family.attach_saved(llama(), tmp_path, trainable=True)


def test_a_prompt_of_another_length_cannot_be_continued(tmp_path):
    families["prompt"].save(bases.attach("prompt", METHODS["prompt"]), tmp_path)

    with pytest.raises(RecipeError, match="method.num_virtual_tokens: the recipe says 6, .* trained with 5"):
        families["prompt"].check_continuation(tmp_path, PromptMethod(type="prompt", num_virtual_tokens=6))


@every_method
def test_more_virtual_tokens_than_positions_are_rejected(name):
    with pytest.raises(
        RecipeError, match="method.num_virtual_tokens: 128 virtual tokens leave no room in the 128 positions"
    ):
        families[name].check(bases.on_meta(), METHODS[name].model_copy(update={"num_virtual_tokens": 128}))


def mamba():
    return MambaForCausalLM(MambaConfig(vocab_size=48, hidden_size=32, num_hidden_layers=2, state_size=4)).eval()


def test_a_prefix_needs_a_cache_of_keys_and_values():
    latent = bases.on_meta()
    latent.config = DeepseekV3Config(**bases.SIZES)

    for model in (mamba(), latent):
        with pytest.raises(RecipeError, match="method.type: prefix writes keys and values"):
            families["prefix"].check(model, METHODS["prefix"])


def test_prefix_tuning_rejects_gradient_checkpointing():
    model = llama()
    model.gradient_checkpointing_enable()

    assert not families["prefix"].supports_gradient_checkpointing
    with pytest.raises(RecipeError, match="load.gradient_checkpointing: prefix"):
        families["prefix"].attach(model, METHODS["prefix"])


def test_a_prompt_works_without_attention(tmp_path):
    model = trained_model("prompt", mamba)
    families["prompt"].save(model, tmp_path)

    assert model.get_prompt(1).shape == (1, 5, 32)
    families["prompt"].check_fits(mamba(), tmp_path)


@every_method
def test_a_model_that_ignores_virtual_tokens_is_rejected(name, monkeypatch):
    model = llama()
    forward = type(model).forward

    def ignore_inputs(self, input_ids=None, past_key_values=None, inputs_embeds=None, **rest):
        ids = IDS[:, :8] if input_ids is None else input_ids
        output = forward(self, input_ids=ids, **{key: value for key, value in rest.items() if key != "attention_mask"})
        output.logits = output.logits + 0.0 * model.model.embed_tokens.weight.sum()
        return output

    monkeypatch.setattr(type(model), "forward", ignore_inputs)
    with pytest.raises(RecipeError, match=f"method.type: {name} prepends virtual tokens, which LlamaForCausalLM does"):
        families[name].attach(model, METHODS[name])


def test_a_layer_that_ignores_its_cache_is_rejected(monkeypatch):
    model = llama()
    attention = model.model.layers[1].self_attn
    forward = attention.forward

    def without_cache(*args, past_key_values=None, attention_mask=None, **rest):
        return forward(*args, past_key_values=None, attention_mask=None, **rest)

    monkeypatch.setattr(attention, "forward", without_cache)
    with pytest.raises(RecipeError, match="does not depend on them"):
        families["prefix"].attach(model, METHODS["prefix"])
