"""Data and template keys of LlamaFactory."""

import pytest

from tests.llamafactory_files import differences, errors_of, recipe_of, translate
from tuneline.config.stages import PIPELINES_BY_STAGE


@pytest.mark.parametrize(
    ("options", "packing", "leak"),
    [({}, False, False), ({"packing": True}, True, True), ({"neat_packing": True}, True, False)],
)
def test_packing_matches_llamafactory_and_attention_differences_are_reported(project, options, packing, leak):
    imported = translate(**options)

    assert imported.config.recipe.tokenize.packing is packing
    assert ("do not attend to each other" in differences(imported, "packing")) is leak


def test_pretraining_texts_are_wrapped_and_scored_by_log_likelihood(project):
    imported = translate(stage="pt", dataset="texts")
    recipe = imported.config.recipe

    assert (recipe.stage, recipe.tokenize.packing, recipe.registry.gate.metric) == (
        "pretrain",
        "wrapped",
        "log_likelihood",
    )
    assert imported.config.pipeline == PIPELINES_BY_STAGE["pretrain"][0]
    assert "texts in one row attend to each other, as in LlamaFactory" in differences(imported, "packing")
    assert recipe_of(stage="pt", dataset="texts", packing=False).tokenize.packing is False


def test_datasets_keep_their_format_and_weight(project):
    recipe = recipe_of(dataset="rows, more", max_samples=2, mix_strategy="interleave_over", interleave_probs="0.2,0.8")

    assert [(s.name, s.max_rows, s.sample, s.weight) for s in recipe.sources] == [
        ("rows", 2, "first", 0.2),
        ("more", 2, "random", 0.8),
    ]
    assert recipe.merge.strategy == "interleave_over"
    assert [s.hub for s in recipe_of(dataset="owner/name", dataset_dir="ONLINE").sources] == ["owner/name"]


def test_unusable_datasets_are_reported_with_the_reason(project):
    assert "has images; only text is supported" in errors_of(dataset="pictures")[0]
    assert "has no 'row'. Did you mean 'rows'?" in errors_of(dataset="row")[0]
    assert "stage sft does not support" in errors_of(dataset="pairs")[0]
    assert "dataset_dir: nowhere/dataset_info.json does not exist" in errors_of(dataset_dir="nowhere")[0]
    assert errors_of(dataset=None)[0].startswith("theirs.yaml:3: dataset: is required")


def test_rows_are_held_out_if_llamafactory_does_not_evaluate(project):
    added = {key: value for key, value, _ in translate().report.added}

    assert added["merge.validation_fraction"] == 0.1
    assert recipe_of(val_size=0.2).merge.validation_fraction == 0.2


def test_a_template_is_built_in_or_the_models_own(project):
    own = translate(template="glm4")
    qwen = recipe_of(template="qwen")
    thinking = recipe_of(template="qwen3", enable_thinking=False)

    assert own.config.recipe.template == "auto"
    assert "which glm4 reproduces" in differences(own, "template")
    assert (qwen.template, qwen.align.system[:15]) == ("qwen", "You are Qwen, c")
    assert (thinking.template_arguments, thinking.tokenize.rewritten_history) == (
        {"enable_thinking": False},
        "each_turn",
    )
    assert recipe_of(template="qwen", default_system="Be kind.").align.system == "Be kind."
