"""LlamaFactory files become recipes; unsupported keys are reported with their line."""

import os
from pathlib import Path

import pytest
import yaml

from tests.llamafactory_files import (
    EXPECTED,
    differences,
    errors_of,
    every_key_is_reported,
    recipe_of,
    translate,
    write_config,
)
from tuneline.config import llamafactory
from tuneline.config.load import load
from tuneline.errors import RecipeError

DATA = os.environ.get("TUNELINE_TEST_DATA")
needs_data = pytest.mark.skipif(not DATA, reason="TUNELINE_TEST_DATA names no folder of test data")


@needs_data
@pytest.mark.parametrize(("name", "blocked"), EXPECTED.items(), ids=EXPECTED)
def test_each_example_is_imported_or_names_its_unsupported_keys(llamafactory_dir, name, blocked):
    path = Path(DATA, "llamafactory_examples", name)
    content = yaml.safe_load(path.read_text())

    if not blocked:
        imported = llamafactory.translate(path)
        (llamafactory_dir / "ours.yaml").write_text(imported.to_yaml(llamafactory_dir))
        assert load(llamafactory_dir / "ours.yaml").recipe == imported.config.recipe
        assert every_key_is_reported(imported, content)
        return
    with pytest.raises(RecipeError) as caught:
        llamafactory.translate(path)
    lines = path.read_text().splitlines()
    messages = [line.removeprefix(f"{path}:").split(": ", 2) for line in str(caught.value).splitlines()]
    assert {key for _, key, _ in messages} == blocked
    assert all(lines[int(number) - 1].startswith(f"{key}:") for number, key, _ in messages)
    assert all(text.count(". ") >= 1 and text.endswith(".") for *_, text in messages), "why, and what to do"


@needs_data
def test_the_table_contains_every_example():
    root = Path(DATA, "llamafactory_examples")

    assert {path.relative_to(root).as_posix() for path in root.rglob("*.yaml")} == set(EXPECTED)


@needs_data
def test_the_lora_example_has_the_same_training_arguments(llamafactory_dir):
    imported = llamafactory.translate(Path(DATA, "llamafactory_examples", "train_lora", "qwen3_lora_sft.yaml"))
    recipe = imported.config.recipe

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


def test_omitted_keys_have_the_defaults_of_llamafactory(project):
    recipe = recipe_of()

    assert (recipe.stage, recipe.method.type, recipe.method.r, recipe.method.lora_alpha) == ("sft", "lora", 8, 16)
    assert (recipe.train.learning_rate, recipe.train.num_train_epochs) == (5e-5, 3)
    assert (recipe.train.per_device_train_batch_size, recipe.train.lr_scheduler_type) == (8, "linear")
    assert (recipe.tokenize.max_length, recipe.tokenize.packing) == (2048, False)
    assert (recipe.train.seed, recipe.train.save_steps, recipe.load.gradient_checkpointing) == (42, 500, "full")


def test_null_is_unset_and_a_number_may_be_a_string(project):
    assert recipe_of(lora_rank=None, learning_rate="1e-5", deepspeed=None).train.learning_rate == 1e-5


def test_an_unknown_key_is_reported_with_the_closest_known_key(project):
    assert errors_of(lora_rnak=8) == [
        "theirs.yaml:5: lora_rnak: is not a key of LlamaFactory. Did you mean 'lora_rank'?"
    ]
    assert errors_of(zzz=8)[0].startswith("theirs.yaml:5: zzz: is not a key of LlamaFactory or of transformers'")


def test_an_invalid_value_is_reported_with_key_line_and_fix(project):
    assert errors_of(warmup_ratio=1.5) == [
        "theirs.yaml:5: warmup_ratio: Input should be less than 1, got 1.5. Correct the value, or remove the key to "
        "use LlamaFactory's default."
    ]
    assert errors_of(stage="sftt")[0].startswith("theirs.yaml:5: stage: unknown stage 'sftt'. Did you mean 'sft'?")
    assert errors_of(lora_rank="eight")[0].startswith("theirs.yaml:5: lora_rank: Input should be a valid integer")
    assert errors_of(lora_rank=0, stage="sft")[0] == (
        "theirs.yaml:5: lora_rank: as method.r in the recipe: Input should be greater than or equal to 1, got 0. "
        "Correct the value."
    )


def test_all_unsupported_keys_are_reported_in_file_order(project):
    errors = errors_of(fsdp="full_shard", val_size=100, use_dft_loss=True, quantization_bit=3, template="lama3")

    assert [line.split(":")[2].strip() for line in errors] == [
        "template",
        "fsdp",
        "val_size",
        "use_dft_loss",
        "quantization_bit",
    ]


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"finetuning_type": "full", "quantization_bit": 4}, "quantization_bit"),
        ({"use_galore": True}, "use_galore"),
        ({"shift_attn": True, "flash_attn": "sdpa"}, "flash_attn"),
        ({"pissa_init": True, "quantization_bit": 4}, "quantization_bit"),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "lr_scheduler_type"),
        ({"lr_scheduler_kwargs": '{"min_lr": 0}'}, "lr_scheduler_kwargs"),
    ],
)
def test_incompatible_options_are_reported_at_a_key_of_the_file(project, options, key):
    line = 5 + list(options).index(key)

    assert errors_of(**options)[0].startswith(f"theirs.yaml:{line}: {key}: as ")


def test_keys_that_the_method_does_not_use_are_reported(project):
    imported = translate(finetuning_type="full", lora_rank=8)

    assert ["lora_rank"] in imported.report.ignored.values()


def test_every_key_is_in_the_report(project):
    content = {"use_dora": False, "val_size": 0, "packing": False, "quantization_method": "bnb", "lora_alpha": 4}
    imported = translate(**content, warmup_ratio=0.1, warmup_steps=5, create_new_adapter=True, fsdp="", streaming=False)

    assert every_key_is_reported(imported, yaml.safe_load(Path("theirs.yaml").read_text()))
    assert imported.config.recipe.train.warmup_steps == 5
    assert "takes precedence" in differences(imported, "warmup_ratio")


def test_loading_a_llamafactory_file_as_a_recipe_names_the_import_command(project):
    with pytest.raises(RecipeError, match="Translate it with: tuneline import theirs.yaml -o FILE"):
        load(write_config())


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
def test_llamafactory_files_are_recognized(tmp_path, content, answer):
    (tmp_path / "it.yaml").write_text(content)

    assert llamafactory.is_llamafactory_config(tmp_path / "it.yaml") is answer


def test_a_file_without_training_is_rejected_with_the_missing_keys(project):
    path = Path("theirs.yaml")
    path.write_text("model_name_or_path: a/b\ntemplate: llama3\n")
    with pytest.raises(RecipeError, match="theirs.yaml:1: model_name_or_path: is the only request in this file"):
        llamafactory.translate(path)


def test_hub_tokens_are_never_shown(project):
    imported = translate(hf_hub_token="hf_secret")

    assert "hf_secret" not in "\n".join(imported.report.lines()) + imported.to_yaml(project)
