"""All numbers and names of a recipe have bounds, so that invalid values are refused before a run."""

import importlib
import math
import pkgutil
from collections.abc import Iterator
from typing import Any

import pytest

import tuneline.config
from tests import tiny
from tuneline.config import base, load
from tuneline.config.base import Config
from tuneline.errors import RecipeError

TRANSLATED = "translated into a recipe, whose model has bounds"
COPIED = "copied from a validated recipe"
SHIPPED = "a table that is part of the package"

UNBOUNDED = {
    "sections.data.MergeStepConfig": COPIED,
    "sections.data.SourceShare": COPIED,
    "sections.data.TokenizeStepConfig": COPIED,
    "sections.evaluate.ExamProtocol": COPIED,
    "sections.load.LoadStepConfig": COPIED,
    "sections.resolve.ResolveConfig": COPIED,
    "sections.sources.IngestConfig": COPIED,
    "validation.quantization.QuantizationEntry": SHIPPED,
    "llamafactory.schema.Data": TRANSLATED,
    "llamafactory.schema.Method": TRANSLATED,
    "llamafactory.schema.Model": TRANSLATED,
    "llamafactory.schema.Optimizer": TRANSLATED,
    "llamafactory.schema.Training": TRANSLATED,
    "llamafactory.schema.LlamaFactoryConfig": TRANSLATED,
    "llamafactory.serving.InferenceConfig": TRANSLATED,
}
"""Models with integers without bounds, and the reason."""

LONG = "n" * 300


def models() -> list[type[Config]]:
    for module in pkgutil.walk_packages(tuneline.config.__path__, "tuneline.config."):
        importlib.import_module(module.name)
    result, waiting = [], [Config]
    while waiting:
        waiting += (here := waiting.pop()).__subclasses__()
        result.append(here)
    return [model for model in result if model is not Config and model.__module__.startswith("tuneline.config.")]


def name(model: type[Config]) -> str:
    return f"{model.__module__.removeprefix('tuneline.config.')}.{model.__qualname__}"


def numbers(model: type[Config]) -> list[dict[str, Any]]:
    """Return the schemas of all numbers of a model, except those of nested models."""
    return list(_numbers(model, model.__pydantic_core_schema__))


def _numbers(model: type[Config], schema: Any) -> Iterator[dict[str, Any]]:
    if isinstance(schema, dict):
        if schema.get("type") in ("int", "float"):
            yield schema
        if schema.get("type") == "model" and schema["cls"] is not model:
            return
        schema = list(schema.values())
    for part in schema if isinstance(schema, list | tuple) else ():
        yield from _numbers(model, part)


def has_bounds(schema: dict[str, Any]) -> bool:
    return bool({"le", "lt"} & set(schema)) and bool({"ge", "gt"} & set(schema))


def test_every_number_of_a_config_has_bounds():
    assert len(models()) > 50
    for model in models():
        _check(model)


def _check(model: type[Config]) -> None:
    result = numbers(model)
    assert model.model_config["allow_inf_nan"] is False
    assert not [each for each in result if each["type"] == "float" and each.get("allow_inf_nan")]
    unbounded = [each for each in result if each["type"] == "int" and not has_bounds(each)]
    assert not unbounded or name(model) in UNBOUNDED, name(model)


def test_only_models_without_bounds_are_exempt():
    unbounded = {
        name(model)
        for model in models()
        if any(each["type"] == "int" and not has_bounds(each) for each in numbers(model))
    }

    assert set(UNBOUNDED) <= unbounded


def problem(tmp_path, recipe, **top) -> str:
    path = tiny.write_config(tmp_path / "run.yaml", recipe, **top)
    with pytest.raises(RecipeError) as caught:
        load.load(path)
    (line,) = str(caught.value).splitlines()
    place, number, rest = line.split(":", 2)
    assert place == str(path)
    assert number.isdigit()
    return rest.strip()


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("train", "learning_rate", math.inf),
        ("train", "learning_rate", math.nan),
        ("train", "learning_rate", 1e6),
        ("train", "num_train_epochs", math.inf),
        ("train", "max_steps", 10**30),
        ("train", "seed", 2**32),
        ("train", "weight_decay", math.nan),
        ("train", "save_seconds", math.inf),
        ("method", "r", 10**9),
        ("tokenize", "max_length", 10**30),
        ("merge", "split_seed", 10**30),
        ("merge_adapter", "max_kl", math.inf),
        ("merge_adapter", "max_shard_size", "9" * 40 + "GB"),
        ("registry", "model_name", LONG),
        ("registry", "model_name", ".."),
        ("registry", "model_name", "a/b"),
        ("registry", "model_name", "a:b"),
        ("registry", "model_name", "a\nb"),
    ],
    ids=str,
)
def test_a_value_out_of_bounds_is_refused_with_its_line(tmp_path, section, key, value):
    recipe = tiny.recipe()
    recipe[section] = recipe.get(section, {}) | {key: value}

    assert problem(tmp_path, recipe).startswith(f"{section}.{key}: ")


@pytest.mark.parametrize("value", ["..", ".", ".hidden", "a/b", "a\\b", "a\0b", "a\nb", "", LONG], ids=repr)
def test_a_source_cannot_have_a_name_that_is_not_a_valid_path(tmp_path, value):
    sources = [{"name": value, "path": "x.jsonl", "format": "alpaca"}]

    assert problem(tmp_path, tiny.recipe(sources=sources)).startswith("sources.0.name: ")


@pytest.mark.parametrize("hub", ["../..", "a/..", "./a", "a/b/c", LONG])
def test_a_repository_id_is_not_a_path(tmp_path, hub):
    sources = [{"name": "first", "hub": hub}]

    assert problem(tmp_path, tiny.recipe(sources=sources)).startswith("sources.0.hub: ")


@pytest.mark.parametrize("folder", ["..", "a/../../b", "/etc"])
def test_a_folder_of_a_repository_stays_inside_it(tmp_path, folder):
    sources = [{"name": "first", "hub": "a/b", "folder": folder}]

    assert "is outside the repository" in problem(tmp_path, tiny.recipe(sources=sources))


@pytest.mark.parametrize("value", [LONG, "a.b", "..", ""])
def test_an_exam_has_a_name_that_is_a_valid_metric_name(tmp_path, value):
    exams = [{"name": value, "path": "exam"}]

    assert problem(tmp_path, tiny.recipe(exams=exams)).startswith("exams.0.name: ")


@pytest.mark.parametrize("value", ["qwen2.5-sft", "a" * 200, "v1.0"])
def test_a_model_name_may_hold_dots(tmp_path, value):
    path = tiny.write_config(tmp_path / "run.yaml", tiny.recipe(registry={"model_name": value}))

    assert load.load(path).training.registry.model_name == value


@pytest.mark.parametrize("key", ["a b", "x = 1 %}{{ 7", "", LONG])
def test_template_arguments_are_named_like_variables(tmp_path, key):
    assert problem(tmp_path, tiny.recipe(template_arguments={key: True})).startswith("template_arguments")


@pytest.mark.parametrize("value", ["inf", "nan", "1e300"])
def test_arguments_of_an_optimizer_are_finite(tmp_path, value):
    recipe = tiny.recipe()
    recipe["train"] = recipe["train"] | {"optim_args": f"beta2={value}"}

    assert "optim_args: beta2" in problem(tmp_path, recipe)


@pytest.mark.parametrize("value", [10**30, 1e30, math.inf])
def test_arguments_of_a_schedule_are_bounded(tmp_path, value):
    kwargs = {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": value}}
    recipe = tiny.recipe()
    recipe["train"] = recipe["train"] | kwargs

    assert "lr_scheduler_kwargs.min_lr" in problem(tmp_path, recipe)


@pytest.mark.parametrize("run_name", [LONG, "a\x07b", " ", 7, "{nothing}", "{date"])
def test_a_run_has_a_name_that_zenml_and_mlflow_accept(tmp_path, run_name):
    assert problem(tmp_path, tiny.recipe(), run_name=run_name).startswith("run_name: ")


def test_a_run_name_may_contain_placeholders(tmp_path):
    top = {"run_name": "a-{mine}-{date}-{time}", "substitutions": {"mine": "x"}}

    checked = load.load(tiny.write_config(tmp_path / "run.yaml", tiny.recipe(), **top))

    assert checked.content["run_name"] == "a-{mine}-{date}-{time}"


def test_a_tag_fits_into_the_store(tmp_path):
    assert problem(tmp_path, tiny.recipe(), tags=["fine", LONG]).startswith("tags.1: ")


def test_mlflow_and_zenml_take_the_longest_names():
    from mlflow.store.model_registry.dbmodels.models import SqlRegisteredModel
    from mlflow.store.tracking.dbmodels.models import SqlRun
    from mlflow.utils.validation import MAX_ENTITY_KEY_LENGTH, _validate_model_name
    from zenml.constants import STR_FIELD_MAX_LENGTH

    stores = [SqlRegisteredModel.name.type.length, SqlRun.name.type.length, STR_FIELD_MAX_LENGTH]

    assert min(stores) > base.MAX_MODEL_NAME + len("2026_01_01")
    assert base.MAX_NAME < MAX_ENTITY_KEY_LENGTH - 100, "the metric's own name follows the exam's"
    for name in ("qwen2.5-sft", "a" * base.MAX_MODEL_NAME, "v1..0", "-a"):
        _validate_model_name(name)
