"""Each stage has a recipe, pipelines and metrics for its gate."""

import pytest

from tests import tiny
from tuneline.config.load import load
from tuneline.config.stages import ALL_RECIPES, PIPELINES_BY_STAGE
from tuneline.errors import RecipeError

TEXTS = {"sources": [{"name": "texts", "path": "texts.jsonl", "format": "text"}]}
LIKELIHOOD = {"registry": {"model_name": "tiny", "gate": {"metric": "log_likelihood"}}}


def write_recipe(folder, **changes):
    top = changes.pop("top", {})
    return tiny.write_config(folder / "run.yaml", tiny.recipe(**changes), **top)


def test_a_stage_is_run_by_its_own_pipeline(tmp_path):
    checked = load(write_recipe(tmp_path, stage="pretrain", **TEXTS, **LIKELIHOOD))

    assert checked.pipeline == "pretrain_pipeline"
    assert checked.recipe.for_tokenize().stage == "pretrain"


def test_an_unknown_stage_is_named_with_the_closest_match(tmp_path):
    with pytest.raises(RecipeError, match=r"run.yaml:3: stage: unknown stage 'pretrian'. Did you mean 'pretrain'"):
        load(write_recipe(tmp_path, stage="pretrian"))


def test_a_pipeline_of_another_stage_is_refused(tmp_path):
    path = write_recipe(tmp_path, stage="pretrain", **TEXTS, **LIKELIHOOD, top={"extra": {"pipeline": "sft_pipeline"}})

    with pytest.raises(RecipeError, match="sft_pipeline does not run stage pretrain. Set pretrain_pipeline"):
        load(path)


def test_a_gate_cannot_use_a_metric_that_the_stage_does_not_measure(tmp_path):
    with pytest.raises(RecipeError, match="does not measure rougeL .stage pretrain"):
        load(
            write_recipe(
                tmp_path, stage="pretrain", **TEXTS, registry={"model_name": "m", "gate": {"metric": "rougeL"}}
            )
        )


def test_every_stage_has_a_recipe_and_a_pipeline_that_exist():
    import pipelines

    assert ALL_RECIPES.keys() == PIPELINES_BY_STAGE.keys()
    assert {name for names in PIPELINES_BY_STAGE.values() for name in names} == set(pipelines.__all__)
