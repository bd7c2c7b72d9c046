"""LlamaFactory's configurations become recipes; what has no counterpart is named, with its line."""

import json
import os
from pathlib import Path

import pytest
import yaml

from tests import tiny
from tuneline.config import llamafactory
from tuneline.config.llamafactory import keys, training
from tuneline.config.llamafactory.schema import LlamaFactoryConfig
from tuneline.config.load import load
from tuneline.config.recipe import Recipe
from tuneline.config.stages import PIPELINES_BY_STAGE
from tuneline.errors import RecipeError

DATA = os.environ.get("TUNELINE_TEST_DATA")
DOCS = Path("docs/llamafactory.md")
needs_data = pytest.mark.skipif(not DATA, reason="TUNELINE_TEST_DATA names no folder of test data")


def optimizer(key: str, name: str) -> set[str]:
    return set() if name in training.optimizer_names() else {key}


EXPECTED: dict[str, set[str]] = {
    "extras/adam_mini/qwen2_full_sft.yaml": optimizer("use_adam_mini", "adam_mini"),
    "extras/apollo/llama3_full_sft.yaml": optimizer("use_apollo", "apollo_adamw_layerwise"),
    "extras/badam/llama3_full_sft.yaml": optimizer("use_badam", "badam"),
    "extras/dft/qwen2_full_sft.yaml": {"use_dft_loss"},
    "extras/fsdp_qlora/llama3_lora_sft.yaml": set(),
    "extras/galore/llama3_full_sft.yaml": set(),
    "extras/llama_pro/llama3_freeze_sft.yaml": {"use_llama_pro"},
    "extras/loraplus/llama3_lora_sft.yaml": set(),
    "extras/mod/llama3_full_sft.yaml": {"mixture_of_depths"},
    "extras/muon/qwen2_full_sft.yaml": optimizer("use_muon", "muon"),
    "extras/nlg_eval/llama3_lora_predict.yaml": {"do_predict", "eval_dataset"},
    "extras/oft/llama3_oft_sft.yaml": set(),
    "extras/pissa/llama3_lora_sft.yaml": set(),
    "extras/qoft/llama3_oft_sft_awq.yaml": set(),
    "extras/qoft/llama3_oft_sft_gptq.yaml": set(),
    "inference/qwen3.yaml": {"infer_backend"},
    "inference/qwen3_full_sft.yaml": {"infer_backend"},
    "inference/qwen3_lora_sft.yaml": {"infer_backend"},
    "merge_lora/qwen3_full_sft.yaml": set(),
    "merge_lora/qwen3_gptq.yaml": {"export_quantization_bit", "export_quantization_dataset"},
    "merge_lora/qwen3_lora_sft.yaml": set(),
    "train_full/qwen3_full_sft.yaml": {"deepspeed"},
    "train_lora/qwen3_lora_dpo.yaml": set(),
    "train_lora/qwen3_lora_kto.yaml": set(),
    "train_lora/qwen3_lora_pretrain.yaml": set(),
    "train_lora/qwen3_lora_reward.yaml": set(),
    "train_lora/qwen3_lora_sft.yaml": set(),
    "train_lora/qwen3_lora_sft_ds3.yaml": {"deepspeed"},
    "train_lora/qwen3_lora_sft_ray.yaml": {"dataset_dir", "ray_num_workers"},
    "train_lora/qwen3_preprocess.yaml": {"tokenized_path"},
    "train_qlora/llama3_lora_sft_aqlm.yaml": set(),
    "train_qlora/llama3_lora_sft_awq.yaml": set(),
    "train_qlora/llama3_lora_sft_gptq.yaml": set(),
    "train_qlora/qwen3_lora_sft_otfq.yaml": set(),
}
"""File -> the keys that keep it from being imported; none where it is."""


@pytest.fixture
def at_home(tmp_path, monkeypatch):
    """A working directory like LlamaFactory's own, with its data."""
    (tmp_path / "data").symlink_to(Path(DATA, "llamafactory"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working directory with three small data sets."""
    tiny.write_jsonl(tmp_path / "data" / "rows.jsonl", tiny.alpaca_rows(4))
    tiny.write_jsonl(tmp_path / "data" / "more.jsonl", tiny.alpaca_rows(4))
    tiny.write_texts(tmp_path / "data" / "texts.jsonl", 4)
    info = {
        "rows": {"file_name": "rows.jsonl"},
        "more": {"file_name": "more.jsonl", "num_samples": 3},
        "texts": {"file_name": "texts.jsonl", "columns": {"prompt": "text"}},
        "pictures": {"file_name": "rows.jsonl", "columns": {"images": "images"}},
        "pairs": {"file_name": "rows.jsonl", "ranking": True, "columns": {"chosen": "chosen", "rejected": "rejected"}},
    }
    (tmp_path / "data" / "dataset_info.json").write_text(json.dumps(info))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def written(**changes) -> Path:
    content = {"model_name_or_path": "a/b", "do_train": True, "dataset": "rows", "template": "llama3", **changes}
    path = Path("theirs.yaml")
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def imported(**changes) -> llamafactory.ImportedConfig:
    return llamafactory.translate(written(**changes))


def recipe_of(**changes) -> Recipe:
    return imported(**changes).config.recipe


def refused(**changes) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        imported(**changes)
    return str(caught.value).splitlines()


def told(found: llamafactory.ImportedConfig, key: str) -> str:
    return "; ".join(text for each, text in found.report.differs if each == key)


@needs_data
@pytest.mark.parametrize(("name", "blocked"), EXPECTED.items(), ids=EXPECTED)
def test_each_example_of_llamafactory_is_imported_or_names_what_has_no_counterpart(at_home, name, blocked):
    path = Path(DATA, "llamafactory_examples", name)
    content = yaml.safe_load(path.read_text())

    if not blocked:
        found = llamafactory.translate(path)
        (at_home / "ours.yaml").write_text(found.to_yaml(at_home))
        assert load(at_home / "ours.yaml").recipe == found.config.recipe
        assert every_key_is_told(found, content)
        return
    with pytest.raises(RecipeError) as caught:
        llamafactory.translate(path)
    lines = path.read_text().splitlines()
    messages = [line.removeprefix(f"{path}:").split(": ", 2) for line in str(caught.value).splitlines()]
    assert {key for _, key, _ in messages} == blocked
    assert all(lines[int(number) - 1].startswith(f"{key}:") for number, key, _ in messages)
    assert all(text.count(". ") >= 1 and text.endswith(".") for *_, text in messages), "why, and what to do"


def every_key_is_told(found, content) -> bool:
    report = found.report
    taken = {key for each in report.taken for key in each.keys}
    told_of = taken | {key for key, _ in report.differs} | {key for group in report.ignored.values() for key in group}
    return {key for key, value in content.items() if value is not None} - {"do_train"} <= told_of


@needs_data
def test_the_table_names_every_example():
    root = Path(DATA, "llamafactory_examples")

    assert {path.relative_to(root).as_posix() for path in root.rglob("*.yaml")} == set(EXPECTED)


@needs_data
def test_the_lora_example_becomes_the_same_training(at_home):
    found = llamafactory.translate(Path(DATA, "llamafactory_examples", "train_lora", "qwen3_lora_sft.yaml"))
    recipe = found.config.recipe

    assert [(source.name, source.max_rows) for source in recipe.sources] == [
        ("identity", 1000),
        ("alpaca_en_demo", 1000),
    ]
    assert (recipe.method.r, recipe.method.lora_alpha, recipe.method.target_modules) == (8, 16, "all")
    assert (recipe.train.learning_rate, recipe.train.warmup_steps, recipe.train.seed) == (1e-4, 0.1, 42)
    assert (recipe.load.dtype, recipe.load.gradient_checkpointing) == ("bfloat16", "full")
    assert (recipe.tokenize.packing, recipe.tokenize.overlong) == (False, "proportional")
    assert recipe.template == "qwen"
    assert recipe.registry.model_name == "qwen3-4b-lora-sft"


def test_what_a_file_leaves_out_is_what_llamafactory_takes(here):
    recipe = recipe_of()

    assert (recipe.stage, recipe.method.type, recipe.method.r, recipe.method.lora_alpha) == ("sft", "lora", 8, 16)
    assert (recipe.train.learning_rate, recipe.train.num_train_epochs) == (5e-5, 3)
    assert (recipe.train.per_device_train_batch_size, recipe.train.lr_scheduler_type) == (8, "linear")
    assert (recipe.tokenize.max_length, recipe.tokenize.packing) == (2048, False)
    assert (recipe.train.seed, recipe.train.save_steps, recipe.load.gradient_checkpointing) == (42, 500, "full")


def test_the_defaults_are_those_of_transformers():
    from dataclasses import fields

    from transformers import Seq2SeqTrainingArguments

    theirs = {field.name: field.default for field in fields(Seq2SeqTrainingArguments)}
    ours = {name: field.default for name, field in LlamaFactoryConfig.model_fields.items() if name in theirs}

    assert theirs.keys() <= set(keys.table().known())
    assert {k for k, v in ours.items() if (v or None) != (theirs[k] or None)} == {
        "optim",  # fused or not, by version
        "per_device_eval_batch_size",  # of answers here, where it is written
    }


def test_every_key_has_one_place_in_the_table():
    known = keys.table().known()

    assert len(known) == len(set(known))
    assert set(keys.table().taken) == set(LlamaFactoryConfig.model_fields)


def test_null_is_unset_and_a_number_may_be_written_without_a_point(here):
    assert recipe_of(lora_rank=None, learning_rate="1e-5", deepspeed=None).train.learning_rate == 1e-5


def test_an_unknown_key_is_told_with_the_nearest(here):
    assert refused(lora_rnak=8) == ["theirs.yaml:5: lora_rnak: is no key of LlamaFactory. Did you mean 'lora_rank'?"]
    assert refused(zzz=8)[0].startswith("theirs.yaml:5: zzz: is no key of LlamaFactory or of transformers'")


def test_a_wrong_value_names_the_key_the_line_and_what_to_do(here):
    assert refused(warmup_ratio=1.5) == [
        "theirs.yaml:5: warmup_ratio: Input should be less than 1, got 1.5. Correct the value, or remove the key to "
        "take LlamaFactory's own."
    ]
    assert refused(stage="sftt")[0].startswith("theirs.yaml:5: stage: unknown stage 'sftt'. Did you mean 'sft'?")
    assert refused(lora_rank="eight")[0].startswith("theirs.yaml:5: lora_rank: Input should be a valid integer")
    assert refused(lora_rank=0, stage="sft")[0] == (
        "theirs.yaml:5: lora_rank: as method.r in a recipe: Input should be greater than or equal to 1, got 0. Correct "
        "the value."
    )


def test_all_keys_without_a_counterpart_are_named_at_once_in_the_order_of_the_file(here):
    found = refused(fsdp="full_shard", val_size=100, use_dft_loss=True, quantization_bit=3, template="lama3")

    assert [line.split(":")[2].strip() for line in found] == [
        "template",
        "fsdp",
        "val_size",
        "use_dft_loss",
        "quantization_bit",
    ]


@pytest.mark.parametrize(
    ("asked", "key"),
    [
        ({"finetuning_type": "full", "quantization_bit": 4}, "quantization_bit"),
        ({"use_galore": True}, "use_galore"),
        ({"shift_attn": True, "flash_attn": "sdpa"}, "flash_attn"),
        ({"pissa_init": True, "quantization_bit": 4}, "quantization_bit"),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "lr_scheduler_type"),
        ({"lr_scheduler_kwargs": '{"min_lr": 0}'}, "lr_scheduler_kwargs"),
    ],
)
def test_a_choice_that_does_not_go_together_is_told_at_a_key_of_the_file(here, asked, key):
    line = 5 + list(asked).index(key)

    assert refused(**asked)[0].startswith(f"theirs.yaml:{line}: {key}: as ")


@pytest.mark.parametrize(
    ("asked", "packing", "leak"),
    [({}, False, False), ({"packing": True}, True, True), ({"neat_packing": True}, True, False)],
)
def test_rows_are_packed_where_llamafactory_packs_and_a_leak_is_told(here, asked, packing, leak):
    found = imported(**asked)

    assert found.config.recipe.tokenize.packing is packing
    assert ("do not see each other" in told(found, "packing")) is leak


def test_texts_are_wrapped_as_in_llamafactory_and_judged_by_likelihood(here):
    found = imported(stage="pt", dataset="texts")
    recipe = found.config.recipe

    assert (recipe.stage, recipe.tokenize.packing, recipe.registry.gate.metric) == (
        "pretrain",
        "wrapped",
        "log_likelihood",
    )
    assert found.config.pipeline == PIPELINES_BY_STAGE["pretrain"][0]
    assert "those in one row see each other, as there" in told(found, "packing")
    assert recipe_of(stage="pt", dataset="texts", packing=False).tokenize.packing is False


def test_data_sets_come_with_their_shape_and_their_share(here):
    recipe = recipe_of(dataset="rows, more", max_samples=2, mix_strategy="interleave_over", interleave_probs="0.2,0.8")

    assert [(s.name, s.max_rows, s.sample, s.weight) for s in recipe.sources] == [
        ("rows", 2, "first", 0.2),
        ("more", 2, "random", 0.8),
    ]
    assert recipe.merge.strategy == "interleave_over"
    assert [s.hub for s in recipe_of(dataset="owner/name", dataset_dir="ONLINE").sources] == ["owner/name"]


def test_data_sets_that_cannot_be_used_say_why(here):
    assert "has images; only text is trained here" in refused(dataset="pictures")[0]
    assert "has no 'row'. Did you mean 'rows'?" in refused(dataset="row")[0]
    assert "stage sft does not train on such" in refused(dataset="pairs")[0]
    assert "dataset_dir: there is no file nowhere/dataset_info.json" in refused(dataset_dir="nowhere")[0]
    assert refused(dataset=None)[0].startswith("theirs.yaml:3: dataset: is required")


def test_rows_are_held_out_where_llamafactory_measures_nothing(here):
    added = {key: value for key, value, _ in imported().report.added}

    assert added["merge.validation_fraction"] == 0.1
    assert recipe_of(val_size=0.2).merge.validation_fraction == 0.2


@pytest.mark.parametrize(
    ("asked", "dtype"),
    [({"bf16": True}, "bfloat16"), ({"fp16": True}, "float16"), ({"pure_bf16": True}, "pure_bfloat16"), ({}, "auto")],
)
def test_precision_is_taken_over(here, asked, dtype):
    assert recipe_of(**asked).load.dtype == dtype


def test_a_quantized_base_a_patched_one_and_its_adapters(here):
    load = recipe_of(
        quantization_bit=4,
        quantization_type="fp4",
        flash_attn="disabled",
        rope_scaling="yarn",
        add_tokens="<a>,<b>",
        enable_liger_kernel=True,
        disable_gradient_checkpointing=True,
    ).load
    merged = recipe_of(adapter_name_or_path="one,two", create_new_adapter=True).load.adapters
    further = recipe_of(adapter_name_or_path="one,two").load.adapters

    assert (load.quantization.type, load.quantization.bnb_4bit_quant_type) == ("bnb_4bit", "fp4")
    assert (load.attention, load.rope_scaling.rope_type, load.kernels) == ("eager", "yarn", "liger")
    assert (load.new_tokens, load.gradient_checkpointing) == (["<a>", "<b>"], "none")
    assert [each.use for each in merged] == ["merge", "merge"]
    assert [each.use for each in further] == ["merge", "continue"]


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (
            {"lora_target": "q_proj,v_proj", "use_dora": True},
            {"target_modules": ["q_proj", "v_proj"], "use_dora": True},
        ),
        ({"pissa_init": True, "pissa_iter": 16}, {"init_lora_weights": "pissa"}),
        ({"finetuning_type": "oft", "oft_block_size": 16}, {"type": "oft", "oft_block_size": 16}),
        (
            {"finetuning_type": "freeze", "freeze_trainable_layers": -3, "freeze_trainable_modules": "mlp"},
            {"type": "freeze", "layers": -3, "trainable_modules": ["mlp"]},
        ),
        ({"finetuning_type": "full"}, {"type": "full"}),
    ],
)
def test_methods_are_taken_over(here, asked, expected):
    method = recipe_of(**asked).method

    assert {key: getattr(method, key) for key in expected} == expected


def test_what_a_method_does_not_read_is_told(here):
    found = imported(finetuning_type="full", lora_rank=8)

    assert ["lora_rank"] in found.report.ignored.values()


def test_no_key_is_passed_over(here):
    content = {"use_dora": False, "val_size": 0, "packing": False, "quantization_method": "bnb", "lora_alpha": 4}
    found = imported(**content, warmup_ratio=0.1, warmup_steps=5, create_new_adapter=True, fsdp="", streaming=False)

    assert every_key_is_told(found, yaml.safe_load(Path("theirs.yaml").read_text()))
    assert found.config.recipe.train.warmup_steps == 5
    assert "comes first" in told(found, "warmup_ratio")


def test_where_only_a_file_of_ours_will_do_the_way_is_told(here):
    with pytest.raises(RecipeError, match="Translate it: tuneline import theirs.yaml -o FILE"):
        load(written())


def test_galore_and_its_arguments(here):
    train = recipe_of(finetuning_type="full", use_galore=True, galore_rank=4, galore_target="mlp").train

    assert (train.optim, train.optim_target_modules) == ("galore_adamw", ["mlp"])
    assert train.optim_args == "rank=4,update_proj_gap=200,scale=2,proj_type=std"


def test_the_pattern_of_all_targets_matches_layers_and_not_the_head():
    from transformers.trainer_utils import check_target_module_exists

    names = ["model.layers.11.self_attn.q_proj", "transformer.h.0.mlp.c_fc", "lm_head", "model.embed_tokens"]

    assert [bool(check_target_module_exists([training.IN_LAYERS], name)) for name in names] == [
        True,
        True,
        False,
        False,
    ]


def test_an_optimizer_that_a_recipe_lacks_is_named(here):
    assert "optim: 'adamw_anyprecision' has no counterpart." in refused(optim="adamw_anyprecision")[0]
    assert recipe_of(optim="adamw_8bit").train.optim == "adamw_bnb_8bit"


def test_optimizers_of_other_libraries_keep_their_arguments(here):
    apollo = recipe_of(finetuning_type="full", use_apollo=True, apollo_rank=4, apollo_layerwise=False).train
    badam = recipe_of(finetuning_type="full", use_badam=True, badam_switch_interval=7).train

    assert apollo.optim == "apollo_adamw"
    assert "rank=4" in apollo.optim_args
    assert badam.optim == "badam"
    assert "switch_block_every=7" in badam.optim_args
    assert (
        "badam_mode: 'ratio' has no counterpart"
        in refused(finetuning_type="full", use_badam=True, badam_mode="ratio")[0]
    )


def test_evaluations_while_training_are_imported(here):
    train = recipe_of(eval_steps=50, load_best_model_at_end=True, early_stopping_steps=3).train

    assert (train.eval_steps, train.load_best_model_at_end, train.early_stopping_patience) == (50, True, 3)
    assert "load_best_model_at_end: needs eval_steps" in refused(load_best_model_at_end=True)[0]
    assert "eval_steps: 0.1 is a share" in refused(eval_steps=0.1)[0]


def test_stages_of_preferences_have_their_recipes(here):
    pairs = {"stage": "dpo", "dataset": "pairs"}

    ipo = recipe_of(**pairs, pref_loss="ipo", pref_beta=0.3)
    orpo = recipe_of(**pairs, pref_loss="orpo", pref_beta=0.2)

    assert (ipo.stage, ipo.train.loss_type, ipo.train.beta) == ("dpo", "ipo", 0.3)
    assert ipo.registry.gate.metric == "preference_accuracy"
    assert (orpo.stage, orpo.train.beta) == ("orpo", 0.2)
    assert "pref_loss: 'kto_pair' has no counterpart." in refused(**pairs, pref_loss="kto_pair")[0]
    both = recipe_of(**pairs, pref_ftx=0.5).train
    assert both.weighted_losses() == [("sigmoid", 1.0), ("sft", 0.5)]
    assert "ld_alpha: 0.5 has no counterpart: stage dpo has no train.ld_alpha" in refused(**pairs, ld_alpha=0.5)[0]


def test_templates_are_ours_or_the_models_own(here):
    own = imported(template="glm4")
    qwen = recipe_of(template="qwen")
    thinking = recipe_of(template="qwen3", enable_thinking=False)

    assert own.config.recipe.template == "auto"
    assert "which glm4 imitates" in told(own, "template")
    assert (qwen.template, qwen.align.system[:15]) == ("qwen", "You are Qwen, c")
    assert (thinking.template_arguments, thinking.tokenize.rewritten_history) == (
        {"enable_thinking": False},
        "each_turn",
    )
    assert recipe_of(template="qwen", default_system="Be kind.").align.system == "Be kind."


TURNS = {
    "chatml": ("<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n", "{}<|im_end|>\n"),
    "deepseek3": ("<｜User｜>{}<｜Assistant｜>", "{}<eos>"),
    "gemma": ("<start_of_turn>user\n{}<end_of_turn>\n<start_of_turn>model\n", "{}<end_of_turn>\n"),
    "llama3": (
        "<|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        "{}<|eot_id|>",
    ),
    "mistral": ("[INST] {}[/INST]", " {}<eos>"),
    "phi": ("<|user|>\n{}<|end|>\n<|assistant|>\n", "{}<|end|>\n"),
    "alpaca": ("### Instruction:\n{}\n\n### Response:\n", "{}<eos>\n\n"),
    "default": ("Human: {}<eos>\nAssistant:", "{}<eos>\n"),
    "empty": ("{}", "{}"),
    "llama2": ("<bos>[INST] {} [/INST]", "{}<eos>"),
    "vicuna": ("USER: {} ASSISTANT:", "{}<eos>"),
    "zephyr": ("<|user|>\n{}<eos><|assistant|>\n", "{}<eos>"),
}
"""LlamaFactory's forms of a question and of its answer."""
BEGIN = {"deepseek3", "gemma", "llama3", "mistral"}
"""Those that begin with a token of their own."""
LIKE = {"gemma2": "gemma", "qwen": "chatml", "qwen3_nothink": "chatml", "smollm": "chatml", "smollm2": "chatml"}


@pytest.mark.parametrize("name", keys.templates().same)
def test_a_template_is_the_same_character_by_character_or_it_is_told(name):
    import jinja2

    known, form = keys.templates().same[name], LIKE.get(name, name)
    said = [("How are you?", "Fine."), ("And now?", "Still fine.")]
    theirs = "".join(TURNS[form][0].format(ask) + TURNS[form][1].format(answer) for ask, answer in said)
    messages = [
        {"role": role, "content": text} for pair in said for role, text in zip(("user", "assistant"), pair, strict=True)
    ]
    source = Path("tuneline/data/chat_template/templates", f"{known.ours}.jinja").read_text()
    ours = jinja2.Environment().from_string(source).render(messages=messages, bos_token="<bos>", eos_token="<eos>")

    assert (ours == ("<bos>" if form in BEGIN else "") + theirs) == (known.differs is None)


def test_every_template_of_ours_is_one_of_the_catalogue():
    catalogue = {path.stem for path in Path("tuneline/data/chat_template/templates").glob("*.jinja")}

    assert {known.ours for known in keys.templates().same.values()} <= catalogue
    assert len(keys.templates().known()) == len(set(keys.templates().known())) == 121


@pytest.mark.parametrize(
    ("content", "answer"),
    [
        ("model_name_or_path: a/b\nstage: sft\n", True),
        ("stage: sft\ndo_train: true\n", True),
        ("parameters: {recipe: {}}\nmodel_name_or_path: a/b\n", False),
        ("stage: sft\nmodel: {}\n", False),
        ("model_name_or_path: [\n", False),
    ],
)
def test_a_file_of_llamafactory_is_told_from_one_of_ours(tmp_path, content, answer):
    (tmp_path / "it.yaml").write_text(content)

    assert llamafactory.is_llamafactory_config(tmp_path / "it.yaml") is answer


def test_a_file_that_trains_nothing_says_what_it_lacks(here):
    path = Path("theirs.yaml")
    path.write_text("model_name_or_path: a/b\ntemplate: llama3\n")
    with pytest.raises(RecipeError, match="theirs.yaml:1: model_name_or_path: is all that is asked for"):
        llamafactory.translate(path)


def test_no_key_of_a_hub_is_shown(here):
    found = imported(hf_hub_token="hf_secret")

    assert "hf_secret" not in "\n".join(found.report.lines()) + found.to_yaml(here)


def test_the_table_of_the_docs_is_the_table():
    head, mark, _ = DOCS.read_text().partition("<!-- table -->\n")
    text = f"{head}{mark}\n{keys.to_markdown()}"
    if os.environ.get("TUNELINE_WRITE_DOCS"):
        DOCS.write_text(text)

    assert DOCS.read_text() == text


def test_an_export_becomes_a_recipe_of_its_own(here):
    path = Path("merge.yaml")
    theirs = {"model_name_or_path": "a/b", "adapter_name_or_path": "saves/one", "template": "llama3"}
    theirs |= {"export_dir": "merged", "export_size": 2, "export_device": "auto", "export_legacy_format": False}
    path.write_text(yaml.safe_dump({**theirs, "export_hub_model_id": "me/it", "infer_dtype": "bfloat16"}))

    found = llamafactory.translate(path)

    recipe = found.config.recipe
    assert found.config.pipeline == "export_pipeline"
    assert recipe.adapters == [here / "saves" / "one"]
    assert (recipe.to, recipe.max_shard_size, recipe.dtype) == (here / "merged", "2GB", "bfloat16")
    assert recipe.push.repo_id == "me/it"
    assert recipe.push.private
    assert "is private" in told(found, "export_hub_model_id")
    assert "the device for a merge is found" in told(found, "export_device")
    (here / "kept").mkdir()
    (here / "kept" / "ours.yaml").write_text(found.to_yaml(here / "kept"))
    assert "to: ../merged" in (here / "kept" / "ours.yaml").read_text()
    assert load(here / "kept" / "ours.yaml").recipe == recipe


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("export_legacy_format", True, "weights are written as safetensors only"),
        ("quantization_bit", 4, "merged into whole weights"),
        ("export_quantization_bit", 4, "not quantized when it is saved"),
        ("export_size", 0, "greater than or equal to 1"),
        ("export_hub_model_id", "no owner", "push.repo_id"),
    ],
)
def test_what_an_export_cannot_do_is_told_at_its_line(here, key, value, said):
    path = Path("merge.yaml")
    path.write_text(f"model_name_or_path: a/b\ntemplate: llama3\nexport_dir: merged\n{key}: {json.dumps(value)}\n")

    with pytest.raises(RecipeError, match=rf"merge.yaml:4: {key}: .*{said}"):
        llamafactory.translate(path)
