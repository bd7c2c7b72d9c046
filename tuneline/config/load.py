"""Read a run configuration strictly: one YAML file, checked as a whole, one line a mistake.

ZenML ignores keys that it does not know; here each is an error that names the line and the nearest known key. The
lists of ZenML's keys are written down so that nothing heavy is imported; a test compares them with ZenML's models.
"""

from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from string import Formatter
from typing import Any

from tuneline.config.base import MAX_MODEL_NAME
from tuneline.config.datasets import dataset_registry
from tuneline.config.parsing import gate_file, located_yaml, zenml_keys
from tuneline.config.parsing.located_yaml import Key, Problem, suggest, value_at
from tuneline.config.recipe import Recipe
from tuneline.config.run_config import RunConfig
from tuneline.config.schedule import ScheduleConfig, find_unsupported_keys
from tuneline.config.stages import ALL_RECIPES, PIPELINES_BY_STAGE, RunRecipe, SFTRecipe
from tuneline.errors import RecipeError

PIPELINES = tuple(name for names in PIPELINES_BY_STAGE.values() for name in names)
RECIPE_KEY: Key = ("parameters", "recipe")


def load(path: Path) -> RunConfig:
    """Read and check a run configuration; sources that name a description become complete.

    Raises:
        RecipeError: One line for each mistake: `file:line: key: what is wrong, what to do`.
    """
    document = located_yaml.read(path, what="a run configuration, like configs/demo.yaml", inside=RECIPE_KEY)
    content = document.content
    if "parameters" not in content:
        _refuse_llamafactory(path)
    told = document.tell([*_unknown_keys(content), *_unusable_names(content)])
    recipe, raw = None, value_at(content, RECIPE_KEY)
    if isinstance(raw, dict):
        _make_paths_absolute(raw, path.resolve().parent)
        unresolved = dataset_registry.expand(document, raw)
        wrong_gate = gate_file.expand(document, raw)
        recipe, problems = _recipe(raw)
        told += [*unresolved, *wrong_gate]
        told += document.tell(
            each
            for each in problems
            if not (unresolved and _is_of_sources(each)) and not (wrong_gate and _is_of_gate(each))
        )
    else:
        told += document.tell(
            [(RECIPE_KEY, "is required: it holds the recipe. See configs/demo.yaml for a complete one.")]
        )
    if recipe:
        told += document.tell([*_unknown_steps(content, recipe), *_other_pipeline(content, recipe)])
    if told or recipe is None:
        raise RecipeError("\n".join(told))
    pipeline = value_at(content, ("extra", "pipeline")) or PIPELINES_BY_STAGE[recipe.stage][0]
    return RunConfig(path, pipeline, recipe, content)


def check_local_schedule(checked: RunConfig) -> None:
    """Refuse a schedule that `tuneline scheduler` does not implement as a whole.

    Raises:
        RecipeError: One line for each key.
    """
    document = located_yaml.read(checked.path, what="a run configuration")
    if told := document.tell(find_unsupported_keys(document.content.get("schedule") or {})):
        raise RecipeError("\n".join(told))


def _refuse_llamafactory(path: Path) -> None:
    """Say what to do with a configuration of LlamaFactory, where only one of ours will do."""
    from tuneline.config import llamafactory

    if llamafactory.is_llamafactory_config(path):
        raise RecipeError(
            f"{path}: is a configuration of LlamaFactory, and a run configuration of ours is wanted here. Translate "
            f"it: tuneline import {path} -o FILE."
        )


def _recipe(raw: dict[str, Any]) -> tuple[RunRecipe | None, list[Problem]]:
    """Check a recipe by the model of its stage."""
    stage = raw.get("stage")
    if isinstance(stage, str) and stage not in ALL_RECIPES:
        return None, [((*RECIPE_KEY, "stage"), f"unknown stage {stage!r}.{suggest(stage, ALL_RECIPES)}")]
    model = ALL_RECIPES[stage] if isinstance(stage, str) else SFTRecipe
    return located_yaml.validate(model, raw, RECIPE_KEY, partial(_known_keys, model))


def _other_pipeline(content: dict[str, Any], recipe: RunRecipe) -> Iterator[Problem]:
    asked, able = value_at(content, ("extra", "pipeline")), PIPELINES_BY_STAGE[recipe.stage]
    if asked in PIPELINES and asked not in able:
        yield ("extra", "pipeline"), f"{asked} does not run stage {recipe.stage}. Set {' or '.join(able)}."


def _known_keys(model: type[RunRecipe], loc: Key, parent: Any) -> list[str]:
    """Return what may stand at a place of a recipe: the model's fields, and the keys that are resolved before it."""
    known = located_yaml.sibling_fields(model, loc, parent)
    if len(loc) == 1 and issubclass(model, Recipe):
        return [*known, "datasets"]
    return [*known, "dataset"] if loc[0] == "sources" and len(loc) == 3 else known


def _is_of_sources(problem: Problem) -> bool:
    """Tell whether a problem may only follow from a description that was not found."""
    return problem[0][len(RECIPE_KEY) :][:1] in (("sources",), ("datasets",))


def _is_of_gate(problem: Problem) -> bool:
    """Tell whether a problem may only follow from a gate that is wrong, which was told already."""
    return problem[0][len(RECIPE_KEY) :][:2] == ("registry", "gate") or problem[1].startswith("registry.gate.")


def _unknown_keys(content: dict[str, Any]) -> Iterator[Problem]:
    groups: list[tuple[Key, Iterable[str]]] = [
        ((), zenml_keys.RUN_KEYS),
        (("parameters",), ("recipe",)),
        (("extra",), ("pipeline",)),
    ]
    steps = value_at(content, ("steps",))
    groups += [(("steps", name), zenml_keys.STEP_KEYS) for name in steps] if isinstance(steps, dict) else []
    for prefix, known in groups:
        section = value_at(content, prefix)
        for name in section if isinstance(section, dict) else ():
            if name not in known:
                yield (*prefix, name), f"unknown key.{suggest(name, known)}"
    pipeline = value_at(content, ("extra", "pipeline"))
    if pipeline is not None and pipeline not in PIPELINES:
        yield ("extra", "pipeline"), f"unknown pipeline {pipeline!r}.{suggest(pipeline, PIPELINES)}"
    if (section := content.get("schedule")) is not None:
        yield from located_yaml.validate(ScheduleConfig, section, ("schedule",))[1]


def _unusable_names(content: dict[str, Any]) -> Iterator[Problem]:
    """Find names that ZenML or MLflow would refuse once the run is under way."""
    names: list[tuple[Key, Any]] = []
    if (run_name := content.get("run_name")) is not None:
        names.append((("run_name",), run_name))
        yield from _unknown_fields(str(run_name), ["date", "time", *(value_at(content, ("substitutions",)) or ())])
    if isinstance(tags := content.get("tags"), list):
        names += [(("tags", i), tag) for i, tag in enumerate(tags) if isinstance(tag, str)]
    for key, name in names:
        if not isinstance(name, str) or not name.strip() or not name.isprintable():
            yield key, f"expected a name of printable characters, got {name!r:.80}."
        elif len(name) > MAX_MODEL_NAME:
            yield key, f"has {len(name)} characters, and at most {MAX_MODEL_NAME} are allowed. Shorten it."


def _unknown_fields(run_name: str, known: list[str]) -> Iterator[Problem]:
    """Find fields in braces that ZenML has nothing to put in place of."""
    try:
        fields = [field for _, field, _, _ in Formatter().parse(run_name) if field is not None]
    except ValueError as error:
        yield ("run_name",), f"{error}. Write {{date}} and {{time}} for the time of the run."
        return
    for field in fields:
        if field not in known:
            yield ("run_name",), f"there is nothing to put in place of {{{field}}}.{suggest(field, known)}"


def _unknown_steps(content: dict[str, Any], recipe: RunRecipe) -> Iterator[Problem]:
    known = recipe.step_names()
    for name in content.get("steps") or {}:
        if name not in known:
            yield ("steps", name), f"unknown step.{suggest(name, known)}"


def _make_paths_absolute(raw: dict[str, Any], base: Path) -> None:
    """Paths in a recipe are relative to the recipe's file."""
    lists = [raw.get(key) for key in ("sources", "exams")] + [value_at(raw, ("load", "adapters"))]
    sections = [raw.get("model"), *(entry for entries in lists if isinstance(entries, list) for entry in entries)]
    for section in sections:
        for key in ("path", "include_path", "task") if isinstance(section, dict) else ():
            if isinstance(written := section.get(key), str) and (key != "task" or written.endswith((".yaml", ".yml"))):
                section[key] = located_yaml.absolute_path(written, base)
    if isinstance(raw.get("to"), str):
        raw["to"] = located_yaml.absolute_path(raw["to"], base)
    if raw.get("stage") == "export" and isinstance(adapters := raw.get("adapters"), list):
        raw["adapters"] = [
            located_yaml.absolute_path(each, base) if isinstance(each, str) else each for each in adapters
        ]
    if isinstance(template := raw.get("template"), str) and template.endswith(".jinja"):
        raw["template"] = located_yaml.absolute_path(template, base)
