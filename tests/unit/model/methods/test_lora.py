"""LoRA and its variants: experts, new rows, tied embeddings, PiSSA and OLoRA, adapters of plain peft."""

import json

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.unit.model.methods import bases
from tests.unit.model.methods.bases import NEW_IDS, gpt2, llama, logits, max_difference, mixtral
from tuneline.config.sections.method import LoraMethod
from tuneline.errors import RecipeError
from tuneline.model.methods import adapter_method, check_fits, families

LORA = families["lora"]


def method(**changes):
    return LoraMethod(**{"type": "lora", "r": 4, "lora_alpha": 8} | changes)


def untied():
    return llama(tied=False)


def train_and_save(folder, config, build=llama, **options):
    model = bases.attach_and_train("lora", config, build, **options)
    LORA.save(model, folder)
    return model


@pytest.mark.parametrize("rslora", [False, True], ids=["plain", "rslora"])
@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_pissa_and_olora_are_saved_as_plain_lora_of_twice_the_rank(init, rslora, tmp_path):
    model = train_and_save(tmp_path, method(init_lora_weights=init, use_rslora=rslora))

    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (saved["r"], saved["lora_alpha"], saved["init_lora_weights"]) == (8, 8 if rslora else 16, True)
    assert load_file(tmp_path / "adapter_model.safetensors")[
        "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    ].shape == (8, 32)
    loaded = peft.PeftModel.from_pretrained(llama(), tmp_path)
    assert max_difference(logits(loaded), logits(model)) <= 1e-5


def test_initial_logits_of_pissa_and_olora_match_the_base():
    for init in ("pissa", "olora"):
        assert max_difference(logits(bases.attach("lora", method(init_lora_weights=init))), logits(llama())) <= 1e-5


def test_the_conversion_keeps_new_rows_and_magnitudes(tmp_path):
    config = method(init_lora_weights="pissa", use_dora=True)
    model = train_and_save(tmp_path, config, new_ids=NEW_IDS)

    loaded = LORA.attach_saved(llama(), tmp_path)

    names = load_file(tmp_path / "adapter_model.safetensors")
    assert any("trainable_tokens_delta" in name for name in names)
    assert any("lora_magnitude_vector" in name for name in names)
    assert max_difference(logits(loaded), logits(model)) <= 1e-5


@pytest.mark.xfail(reason="peft's conversion keeps only A and B; see docs/upstream.md", strict=True)
def test_canary_pefts_own_conversion_keeps_modules_to_save(tmp_path):
    config = peft.LoraConfig(r=4, init_lora_weights="pissa", target_modules=["q_proj"], modules_to_save=["norm"])
    model = peft.get_peft_model(llama(), config)
    model.peft_config["default"].init_lora_weights = True
    model.save_pretrained(tmp_path / "first", save_embedding_layers=False)
    model.peft_config["default"].init_lora_weights = "pissa"
    first = str(tmp_path / "first")
    model.save_pretrained(tmp_path, path_initial_model_for_weight_conversion=first, save_embedding_layers=False)

    assert any("norm" in name for name in load_file(tmp_path / "adapter_model.safetensors"))


@pytest.mark.xfail(reason="peft reads Conv1D the wrong way round; see docs/upstream.md", strict=True)
def test_canary_olora_works_on_conv1d():
    config = peft.LoraConfig(r=4, init_lora_weights="olora", target_modules=["c_attn"], fan_in_fan_out=True)

    logits(peft.get_peft_model(gpt2(), config))


def test_olora_on_conv1d_is_rejected():
    with pytest.raises(RecipeError, match="method.init_lora_weights: olora does not support .*c_attn, a Conv1D"):
        LORA.check(bases.on_meta(gpt2), method(init_lora_weights="olora"))


@pytest.mark.parametrize("build", [llama, untied])
def test_only_the_rows_of_new_tokens_are_trained(build, tmp_path):
    before = bases.copy_weights(build())
    model = train_and_save(tmp_path, method(), build, new_ids=NEW_IDS)

    merged = LORA.merge(LORA.attach_saved(build(), tmp_path))

    assert max_difference(logits(merged), logits(model)) <= 1e-5
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        changed = (merged.state_dict()[name] != before[name]).any(dim=1).nonzero()[:, 0]
        assert tuple(changed.tolist()) == NEW_IDS
    assert (merged.lm_head.weight is merged.model.embed_tokens.weight) == (build is llama)


def test_new_rows_of_a_fully_trained_matrix_are_not_trained_separately(tmp_path):
    model = train_and_save(tmp_path, method(modules_to_save=["lm_head"]), untied, new_ids=NEW_IDS)

    trained = [name for name, p in model.named_parameters() if p.requires_grad and ".layers." not in name]
    assert sorted(name.split(".")[-2] for name in trained) == ["default", "trainable_tokens_delta"]
    assert max_difference(logits(LORA.merge(LORA.attach_saved(untied(), tmp_path))), logits(model)) <= 1e-5


def with_bias(dtype=torch.float32):
    model = untied()
    model.lm_head = torch.nn.Linear(32, 48, bias=True)
    return model


def test_new_rows_of_a_head_with_bias_are_rejected():
    with pytest.raises(RecipeError, match="load.new_tokens: lm_head has a bias"):
        LORA.check(with_bias(), method(), new_ids=NEW_IDS)
    LORA.check(with_bias(), method(modules_to_save=["lm_head"]), new_ids=NEW_IDS)


@pytest.mark.xfail(reason="peft leaves the bias of a head out; see docs/upstream.md", strict=True)
def test_canary_single_rows_of_a_head_keep_its_bias():
    config = peft.LoraConfig(r=4, target_modules=["q_proj"], trainable_token_indices={"lm_head": [1]})
    torch.manual_seed(0)
    base = with_bias()
    before = logits(base)

    assert max_difference(logits(peft.get_peft_model(base, config)), before) <= 1e-5


@pytest.mark.parametrize("name", ["lm_head", "embed_tokens"])
def test_a_fully_trained_tied_matrix_stays_tied(name, tmp_path):
    model = train_and_save(tmp_path / "adapter", method(modules_to_save=[name]))

    merged = LORA.merge(LORA.attach_saved(llama(), tmp_path / "adapter"))
    merged.save_pretrained(tmp_path / "merged")
    loaded = type(merged).from_pretrained(tmp_path / "merged")

    assert merged.lm_head.weight is merged.model.embed_tokens.weight
    assert not torch.equal(merged.lm_head.weight, llama().lm_head.weight)
    assert max_difference(logits(loaded), logits(model)) <= 1e-5


def test_modules_to_save_do_not_match_suffixes_of_other_names():
    model = bases.attach("lora", method(modules_to_save=["norm"], target_modules=["q_proj"]))

    names = [name for name, p in model.named_parameters() if p.requires_grad and "modules_to_save" in name]
    assert names == ["base_model.model.model.norm.modules_to_save.default.weight"]


def test_unknown_and_duplicate_modules_to_save_are_rejected():
    with pytest.raises(
        RecipeError, match=r"method.modules_to_save: 'lm_hed' is not a module .* Did you mean 'lm_head'\?"
    ):
        LORA.check(bases.on_meta(), method(modules_to_save=["lm_hed"]))
    with pytest.raises(RecipeError, match="method.modules_to_save: .*q_proj has an adapter"):
        LORA.check(bases.on_meta(), method(modules_to_save=["self_attn"]))


def test_adapters_on_a_tied_embedding_are_rejected():
    with pytest.raises(RecipeError, match="share one matrix"):
        LORA.check(bases.on_meta(), method(target_modules=["embed_tokens"]))
    LORA.check(bases.on_meta(tied=False), method(target_modules=["embed_tokens", "q_proj"]))


def test_an_untied_embedding_can_be_adapted(tmp_path):
    model = train_and_save(tmp_path, method(target_modules=["embed_tokens", "lm_head", "q_proj"]), untied)

    assert max_difference(logits(LORA.merge(LORA.attach_saved(untied(), tmp_path))), logits(model)) <= 1e-5


def test_ranks_above_the_matrix_and_unknown_layers_are_rejected():
    with pytest.raises(RecipeError, match=r"method.r: rank 64 is above .* Set at most 16"):
        LORA.check(bases.on_meta(), method(r=64))
    with pytest.raises(RecipeError, match=r"method.target_modules: 'q_prj' is not a layer .* Did you mean 'q_proj'\?"):
        LORA.check(bases.on_meta(), method(target_modules=["q_prj"]))


def test_adapters_on_experts_are_saved_and_merged(tmp_path):
    model = train_and_save(tmp_path, method(), mixtral)

    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    loaded = LORA.attach_saved(mixtral(), tmp_path)
    assert any("experts" in name for name in trained)
    assert not any("gate.lora" in name or "lm_head" in name for name in trained)
    assert max_difference(logits(loaded), logits(model)) <= 1e-5
    assert max_difference(logits(LORA.merge(loaded)), logits(model)) <= 1e-5


def test_an_adapter_on_experts_can_be_continued(tmp_path):
    train_and_save(tmp_path, method(), mixtral)

    LORA.check_continuation(tmp_path, method(), bases.on_meta(mixtral))
    losses = bases.train(LORA.attach_saved(mixtral(), tmp_path, trainable=True), "lora")

    assert losses[-1] < losses[0]


@pytest.mark.parametrize("key", ["lora_dropout", "use_dora", "init_lora_weights"])
def test_unsupported_options_for_experts_are_rejected(key):
    value = {"lora_dropout": 0.1, "use_dora": True, "init_lora_weights": "pissa"}[key]

    with pytest.raises(RecipeError, match=f"method.{key}: .*contains several experts"):
        LORA.check(bases.on_meta(mixtral), method(**{key: value}))
    LORA.check(bases.on_meta(mixtral), method(**{key: value}, target_modules=["q_proj"]))


def test_conv1d_layers_are_adapted_with_the_right_orientation(tmp_path):
    model = train_and_save(tmp_path, method(init_lora_weights="pissa"), gpt2)

    assert max_difference(logits(LORA.merge(LORA.attach_saved(gpt2(), tmp_path))), logits(model)) <= 1e-5


def test_lora_plus_gives_b_its_own_learning_rate():
    config = method(loraplus_lr_ratio=16)
    model = bases.attach("lora", config)

    groups = LORA.parameter_groups(model, config, 1e-4, weight_decay=0.1)

    names = {id(p): name for name, p in model.named_parameters()}
    rates = {names[id(p)].split(".")[-3]: group["lr"] for group in groups for p in group["params"]}
    assert rates == {"lora_A": 1e-4, "lora_B": pytest.approx(1.6e-3)}
    assert {group["weight_decay"] for group in groups} == {0.1}
    assert sum(len(group["params"]) for group in groups) == sum(p.requires_grad for p in model.parameters())
    assert LORA.parameter_groups(model, method(), 1e-4) is None


def test_adapters_are_merged_one_after_the_other(tmp_path):
    first = train_and_save(tmp_path / "first", method(target_modules=["q_proj"]))
    base = LORA.merge(LORA.attach_saved(llama(), tmp_path / "first"))
    assert max_difference(logits(base), logits(first)) <= 1e-5

    second = LORA.attach(base, method(init_lora_weights="pissa", r=2))
    bases.train(second, "lora")
    LORA.save(second, tmp_path / "second")

    loaded = LORA.merge(LORA.attach_saved(llama(), tmp_path / "first"))
    loaded = LORA.merge(LORA.attach_saved(loaded, tmp_path / "second"))
    assert max_difference(logits(loaded), logits(second)) <= 1e-5


def test_an_adapter_of_plain_peft_can_be_loaded(tmp_path):
    model = peft.get_peft_model(llama(), peft.LoraConfig(r=3, target_modules=["q_proj", "v_proj"]))
    bases.train(model, "lora")
    model.save_pretrained(tmp_path)

    check_fits(bases.on_meta(), tmp_path)
    loaded = LORA.attach_saved(llama(), tmp_path, trainable=True)

    assert adapter_method(tmp_path) == "lora"
    assert max_difference(logits(loaded), logits(model)) == 0
    LORA.check_continuation(tmp_path, method(r=3, target_modules=["q_proj", "v_proj"]), bases.on_meta())


def test_an_unconverted_pissa_adapter_is_rejected(tmp_path):
    config = peft.LoraConfig(r=3, target_modules=["q_proj"], init_lora_weights="pissa_niter_4")
    peft.get_peft_model(llama(), config).save_pretrained(tmp_path)

    with pytest.raises(RecipeError, match="load.adapters: .*saved with init_lora_weights: pissa_niter_4"):
        check_fits(bases.on_meta(), tmp_path)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_saved_adapter_on_a_tied_embedding_is_rejected(tmp_path):
    peft.get_peft_model(llama(), peft.LoraConfig(r=3, target_modules=["embed_tokens"])).save_pretrained(tmp_path)

    with pytest.raises(RecipeError, match="load.adapters: .* adapts embed_tokens, which this model shares"):
        check_fits(bases.on_meta(), tmp_path)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_pattern_that_matches_a_tied_matrix_is_rejected(tmp_path):
    peft.get_peft_model(llama(), peft.LoraConfig(r=3, target_modules=".*(embed_tokens|q_proj)")).save_pretrained(
        tmp_path
    )

    with pytest.raises(RecipeError, match="load.adapters: .* adapts model.embed_tokens, which this model shares"):
        check_fits(bases.on_meta(), tmp_path)


def test_an_adapter_with_new_rows_needs_the_same_tokens(tmp_path):
    train_and_save(tmp_path, method(), new_ids=NEW_IDS)

    with pytest.raises(RecipeError, match="trained the row of token 47, but this model has 44 tokens. Add the tokens"):
        check_fits(bases.on_meta(vocab_size=44), tmp_path)


CHANGES = {
    "r": ({"r": 8}, r"method.r: the recipe says 8, but .* was trained with 4.* twice the rank"),
    "lora_alpha": ({"lora_alpha": 9}, "method.lora_alpha: the recipe says 9"),
    "use_dora": ({"use_dora": True}, "method.use_dora: the recipe says True"),
    "layers": ({"target_modules": ["q_proj"]}, r"method.target_modules: .* different layers .* Set target_modules: \["),
    "modules_to_save": ({"modules_to_save": ["norm"]}, r"method.modules_to_save: the recipe says \['norm'\]"),
    "init": ({"init_lora_weights": "olora"}, "method.init_lora_weights: olora has no effect"),
}


@pytest.mark.parametrize("key", CHANGES)
def test_a_continued_adapter_must_match_the_recipe(key, tmp_path):
    train_and_save(tmp_path, method())
    changes, message = CHANGES[key]

    LORA.check_continuation(tmp_path, method(), bases.on_meta())
    with pytest.raises(RecipeError, match=message):
        LORA.check_continuation(tmp_path, method(**changes), bases.on_meta())


def test_a_converted_adapter_is_continued_with_its_saved_values(tmp_path):
    train_and_save(tmp_path, method(init_lora_weights="pissa", use_rslora=True))

    LORA.check_continuation(tmp_path, method(r=8, lora_alpha=8, use_rslora=True), bases.on_meta())


def test_damaged_files_are_rejected(tmp_path):
    train_and_save(tmp_path, method())
    path = tmp_path / "adapter_model.safetensors"
    tensors = load_file(path)

    tensors.popitem()
    save_file(tensors, path)
    with pytest.raises(RecipeError, match="is missing in the file"):
        check_fits(bases.on_meta(), tmp_path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(RecipeError, match="cannot be read"):
        check_fits(bases.on_meta(), tmp_path)
    path.rename(tmp_path / "adapter_model.bin")
    with pytest.raises(RecipeError, match="a pickle file"):
        check_fits(bases.on_meta(), tmp_path)
    (tmp_path / "adapter_config.json").write_text("{")
    with pytest.raises(RecipeError, match="is not valid JSON"):
        adapter_method(tmp_path)
    (tmp_path / "adapter_config.json").write_text("[]")
    with pytest.raises(RecipeError, match="contains a list"):
        adapter_method(tmp_path)


def test_folders_without_a_supported_adapter_are_rejected(tmp_path):
    with pytest.raises(RecipeError, match="has no adapter_config.json. Give the folder"):
        adapter_method(tmp_path)
    llama().save_pretrained(tmp_path)
    with pytest.raises(RecipeError, match="This is a full model: set `model` to it"):
        adapter_method(tmp_path)
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LOHA"}')
    with pytest.raises(RecipeError, match="has the peft_type LOHA, which is not supported; supported: .*LORA"):
        adapter_method(tmp_path)


def test_a_merged_16_bit_model_has_one_dtype_and_no_hooks():
    def half():
        return llama(dtype=torch.bfloat16)

    model = bases.attach_and_train("lora", method(modules_to_save=["lm_head", "norm"]), half)
    before = logits(model)

    merged = LORA.merge(model)

    assert {p.dtype for p in merged.parameters()} == {torch.bfloat16}
    assert not any(module._forward_pre_hooks for module in merged.modules())
    assert max_difference(logits(merged), before) < 0.1 * before.std()
