"""Virtual tokens: logits stand where the trainer looks for them; architectures that do not take them are refused."""

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
each = pytest.mark.parametrize("name", METHODS)


def trained(name, build=llama):
    return bases.attach_and_train(name, METHODS[name], build)


@torch.no_grad()
def by_hand(name, model):
    """Put embeddings in front, or write the cache and feed one token after the other."""
    base = model.get_base_model()
    if name != "prefix":
        embeds = torch.cat([model.get_prompt(1), model.word_embeddings(IDS)], dim=1)
        return base(inputs_embeds=embeds).logits[0, 5:]
    cache = model.get_prompt(1)
    return torch.cat([base(input_ids=token[:, None], past_key_values=cache).logits[0] for token in IDS.T])


@each
@pytest.mark.parametrize("attention", ["eager", "sdpa", "segment"])
def test_logits_are_those_of_the_text_behind_the_virtual_tokens(name, attention):
    def build():
        model = llama()
        model.set_attn_implementation(attention)
        return model

    model = trained(name, build)

    assert max_difference(logits(model, name), by_hand(name, model)) <= 1e-5


@each
def test_logits_at_some_positions_are_picked_behind_the_virtual_tokens(name):
    model = trained(name)
    keep = torch.tensor([0, 3, 10])

    with torch.no_grad():
        some = families[name].logits(model, {"input_ids": IDS, **packed_inputs([12])}, keep)

    assert max_difference(some, logits(model, name)[keep]) <= 1e-5


@each
def test_a_token_does_not_change_the_logits_before_it(name):
    model = trained(name)
    other = IDS.clone()
    other[0, 8:] = 1

    assert max_difference(logits(model, name, other)[:8], logits(model, name)[:8]) <= 1e-5


@each
def test_rows_cannot_be_packed_and_the_family_says_so(name):
    assert not families[name].supports_packing


def test_only_prompts_stand_in_the_logits():
    numbers = {name: families[name].num_prefix_logits(trained(name)) for name in METHODS}

    assert numbers == {"prefix": 0, "prompt": 5, "p_tuning": 5}


def test_switched_off_nothing_stands_in_front():
    model = trained("prompt")

    with families["prompt"].disable_adapter(model):
        assert families["prompt"].num_prefix_logits(model) == 0
    assert families["prompt"].num_prefix_logits(model) == 5


def test_a_prompt_starts_from_words_of_the_vocabulary():
    model = bases.attach("prompt", METHODS["prompt"])
    words = model.get_input_embeddings().weight

    starts = model.prompt_encoder["default"].embedding.weight

    assert all((words == start).all(dim=1).any() for start in starts)


@pytest.mark.parametrize(
    "method", [METHODS["p_tuning"], METHODS["prefix"].model_copy(update={"prefix_projection": True})]
)
def test_what_a_network_made_cannot_be_trained_further(method, tmp_path):
    family = families[method.type]
    family.save(bases.attach(method.type, method), tmp_path)

    with pytest.raises(RecipeError, match="a small network made while training"):
        family.check_continuation(tmp_path, method)
    with pytest.raises(RecipeError, match="a small network made while training"):
        family.attach_saved(llama(), tmp_path, trainable=True)


def test_another_length_cannot_go_on(tmp_path):
    families["prompt"].save(bases.attach("prompt", METHODS["prompt"]), tmp_path)

    with pytest.raises(RecipeError, match="method.num_virtual_tokens: the recipe says 6, .* made with 5"):
        families["prompt"].check_continuation(tmp_path, PromptMethod(type="prompt", num_virtual_tokens=6))


@each
def test_more_virtual_tokens_than_positions_are_refused(name):
    with pytest.raises(RecipeError, match="method.num_virtual_tokens: 128 leave no room in the 128 positions"):
        families[name].check(bases.on_meta(), METHODS[name].model_copy(update={"num_virtual_tokens": 128}))


def mamba():
    return MambaForCausalLM(MambaConfig(vocab_size=48, hidden_size=32, num_hidden_layers=2, state_size=4)).eval()


def test_a_prefix_needs_a_cache_of_keys_and_values():
    latent = bases.on_meta()
    latent.config = DeepseekV3Config(**bases.SIZES)

    for model in (mamba(), latent):
        with pytest.raises(RecipeError, match="method.type: prefix writes keys and values"):
            families["prefix"].check(model, METHODS["prefix"])


def test_a_prefix_under_checkpointing_is_refused():
    model = llama()
    model.gradient_checkpointing_enable()

    assert not families["prefix"].supports_gradient_checkpointing
    with pytest.raises(RecipeError, match="load.gradient_checkpointing: prefix"):
        families["prefix"].attach(model, METHODS["prefix"])


def test_a_prompt_works_without_attention(tmp_path):
    model = trained("prompt", mamba)
    families["prompt"].save(model, tmp_path)

    assert model.get_prompt(1).shape == (1, 5, 32)
    families["prompt"].check_fits(mamba(), tmp_path)


@each
def test_a_model_that_takes_no_notice_of_them_is_refused(name, monkeypatch):
    model = llama()
    forward = type(model).forward

    def deaf(self, input_ids=None, past_key_values=None, inputs_embeds=None, **rest):
        ids = IDS[:, :8] if input_ids is None else input_ids
        made = forward(self, input_ids=ids, **{key: value for key, value in rest.items() if key != "attention_mask"})
        made.logits = made.logits + 0.0 * model.model.embed_tokens.weight.sum()
        return made

    monkeypatch.setattr(type(model), "forward", deaf)
    with pytest.raises(
        RecipeError, match=f"method.type: {name} puts virtual tokens in front, and LlamaForCausalLM does"
    ):
        families[name].attach(model, METHODS[name])


def test_a_layer_that_takes_no_notice_of_its_keys_is_refused(monkeypatch):
    model = llama()
    attention = model.model.layers[1].self_attn
    forward = attention.forward

    def without_cache(*args, past_key_values=None, attention_mask=None, **rest):
        return forward(*args, past_key_values=None, attention_mask=None, **rest)

    monkeypatch.setattr(attention, "forward", without_cache)
    with pytest.raises(RecipeError, match="does not depend on them"):
        families["prefix"].attach(model, METHODS["prefix"])
