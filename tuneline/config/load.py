"""Read a run configuration file: validate the whole file and report one error per line.

ZenML ignores unknown keys; here each one is an error with its line and the closest known key. ZenML's keys are listed
in `parsing/zenml_keys.py` so that ZenML is not imported; a test compares the lists with ZenML's models.
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
    """Read and validate a run configuration. Sources that name a dataset registry entry are expanded.

    Raises:
        RecipeError: The file is invalid. One line per error: `file:line: key: message`.
    """
    document = located_yaml.read(path, description="a run configuration, like configs/demo.yaml", root=RECIPE_KEY)
    content = document.content
    if "parameters" not in content:
        _refuse_llamafactory(path)
    errors = document.format_errors([*_unknown_keys(content), *_invalid_names(content)])
    recipe, raw = None, value_at(content, RECIPE_KEY)
    if isinstance(raw, dict):
        _make_paths_absolute(raw, path.resolve().parent)
        source_errors = dataset_registry.expand(document, raw)
        gate_errors = gate_file.expand(document, raw)
        recipe, problems = _recipe(raw)
        errors += [*source_errors, *gate_errors]
        errors += document.format_errors(
            problem
            for problem in problems
            if not (source_errors and _may_come_from_sources(problem))
            and not (gate_errors and _may_come_from_gate(problem))
        )
    else:
        missing = (RECIPE_KEY, "is required. Add the recipe; configs/demo.yaml is a complete example.")
        errors += document.format_errors([missing])
    if recipe:
        errors += document.format_errors([*_unknown_steps(content, recipe), *_other_pipeline(content, recipe)])
    if errors or recipe is None:
        raise RecipeError("\n".join(errors))
    pipeline = value_at(content, ("extra", "pipeline")) or PIPELINES_BY_STAGE[recipe.stage][0]
    return RunConfig(path, pipeline, recipe, content)


def check_local_schedule(checked: RunConfig) -> None:
    """Reject schedule keys that `tuneline scheduler` does not support.

    Raises:
        RecipeError: The schedule has unsupported keys. One line per key.
    """
    document = located_yaml.read(checked.path, description="a run configuration")
    if errors := document.format_errors(find_unsupported_keys(document.content.get("schedule") or {})):
        raise RecipeError("\n".join(errors))


def _refuse_llamafactory(path: Path) -> None:
    """Reject a LlamaFactory configuration file and print the command that translates it."""
    from tuneline.config import llamafactory

    if llamafactory.is_llamafactory_config(path):
        raise RecipeError(
            f"{path}: expected a run configuration of Tuneline, got a LlamaFactory configuration. Translate it with: "
            f"tuneline import {path} -o FILE."
        )


def _recipe(raw: dict[str, Any]) -> tuple[RunRecipe | None, list[Problem]]:
    """Validate a recipe with the model of its stage."""
    stage = raw.get("stage")
    if isinstance(stage, str) and stage not in ALL_RECIPES:
        return None, [((*RECIPE_KEY, "stage"), f"unknown stage {stage!r}.{suggest(stage, ALL_RECIPES)}")]
    model = ALL_RECIPES[stage] if isinstance(stage, str) else SFTRecipe
    return located_yaml.validate(model, raw, RECIPE_KEY, partial(_known_keys, model))


def _other_pipeline(content: dict[str, Any], recipe: RunRecipe) -> Iterator[Problem]:
    pipeline, supported = value_at(content, ("extra", "pipeline")), PIPELINES_BY_STAGE[recipe.stage]
    if pipeline in PIPELINES and pipeline not in supported:
        yield ("extra", "pipeline"), f"{pipeline} does not run stage {recipe.stage}. Set {' or '.join(supported)}."


def _known_keys(model: type[RunRecipe], loc: Key, parent: Any) -> list[str]:
    """Return the allowed keys at a location: the model's fields, and keys that are expanded before validation."""
    known = located_yaml.sibling_fields(model, loc, parent)
    if len(loc) == 1 and issubclass(model, Recipe):
        return [*known, "datasets"]
    return [*known, "dataset"] if loc[0] == "sources" and len(loc) == 3 else known


def _may_come_from_sources(problem: Problem) -> bool:
    """Return whether a problem may be a consequence of an unresolved dataset entry."""
    return problem[0][len(RECIPE_KEY) :][:1] in (("sources",), ("datasets",))


def _may_come_from_gate(problem: Problem) -> bool:
    """Return whether a problem may be a consequence of an invalid gate, which is already reported."""
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


def _invalid_names(content: dict[str, Any]) -> Iterator[Problem]:
    """Yield names that ZenML or MLflow would reject after the run has started."""
    names: list[tuple[Key, Any]] = []
    if (run_name := content.get("run_name")) is not None:
        names.append((("run_name",), run_name))
        yield from _unknown_placeholders(
            str(run_name), ["date", "time", *(value_at(content, ("substitutions",)) or ())]
        )
    if isinstance(tags := content.get("tags"), list):
        names += [(("tags", i), tag) for i, tag in enumerate(tags) if isinstance(tag, str)]
    for key, name in names:
        if not isinstance(name, str) or not name.strip() or not name.isprintable():
            yield key, f"expected a name of printable characters, got {name!r:.80}. Correct it."
        elif len(name) > MAX_MODEL_NAME:
            yield key, f"has {len(name)} characters; the maximum is {MAX_MODEL_NAME}. Shorten it."


def _unknown_placeholders(run_name: str, known: list[str]) -> Iterator[Problem]:
    """Yield placeholders in the run name that ZenML cannot substitute."""
    try:
        fields = [field for _, field, _, _ in Formatter().parse(run_name) if field is not None]
    except ValueError as error:
        yield ("run_name",), f"{error}. Use {{date}} and {{time}} for the start time of the run."
        return
    for field in fields:
        if field not in known:
            yield ("run_name",), f"unknown placeholder {{{field}}}.{suggest(field, known)}"


def _unknown_steps(content: dict[str, Any], recipe: RunRecipe) -> Iterator[Problem]:
    known = recipe.step_names()
    for name in content.get("steps") or {}:
        if name not in known:
            yield ("steps", name), f"unknown step.{suggest(name, known)}"


def _make_paths_absolute(raw: dict[str, Any], base: Path) -> None:
    """Resolve the recipe's paths relative to the recipe file."""
    lists = [raw.get(key) for key in ("sources", "exams")] + [value_at(raw, ("load", "adapters"))]
    sections = [raw.get("model"), *(entry for entries in lists if isinstance(entries, list) for entry in entries)]
    for section in sections:
        for key in ("path", "include_path", "task") if isinstance(section, dict) else ():
            if isinstance(path := section.get(key), str) and (key != "task" or path.endswith((".yaml", ".yml"))):
                section[key] = located_yaml.absolute_path(path, base)
    if isinstance(raw.get("to"), str):
        raw["to"] = located_yaml.absolute_path(raw["to"], base)
    if raw.get("stage") == "export" and isinstance(adapters := raw.get("adapters"), list):
        raw["adapters"] = [
            located_yaml.absolute_path(path, base) if isinstance(path, str) else path for path in adapters
        ]
    if isinstance(template := raw.get("template"), str) and template.endswith(".jinja"):
        raw["template"] = located_yaml.absolute_path(template, base)
