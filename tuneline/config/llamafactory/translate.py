"""Translate a LlamaFactory configuration file to a run configuration, with a report of differences."""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tuneline.config.llamafactory.data import translate_data
from tuneline.config.llamafactory.export import translate_export
from tuneline.config.llamafactory.model import translate_method, translate_model
from tuneline.config.llamafactory.read import read
from tuneline.config.llamafactory.report import ImportReport
from tuneline.config.llamafactory.training import translate_stage, translate_training
from tuneline.config.llamafactory.translation import Translation
from tuneline.config.parsing import located_yaml
from tuneline.config.recipe import Recipe
from tuneline.config.run_config import RunConfig
from tuneline.config.stages import ALL_RECIPES, PIPELINES_BY_STAGE, RECIPES, RunRecipe

OUTPUT_ROOTS = ("saves", "save", "output", "outputs", "results", "..", ".", "/")
"""First folders of an `output_dir` that are not part of a model's name."""

HALF_DTYPES = ("bfloat16", "pure_bfloat16", "float16")
MAX_KL = 1e-3
"""Allowed KL divergence from rounding to 16 bits, in nats per token."""

MODEL_KEY = "model_name_or_path"
UNSUPPORTED_PURPOSES = {
    "do_eval": "evaluation without training is not supported. Set do_train: true and dataset; a run evaluates the new "
    "model on held-out rows.",
    "infer_backend": "serving is not part of a run. Serve this file with tuneline serve, or chat with tuneline chat.",
    MODEL_KEY: "is the only request in this file, so there is nothing to train. Set do_train: true and dataset to "
    "train; serve this file with tuneline serve, or chat with tuneline chat.",
}
"""Key of a file that does not train -> reason for the rejection."""

GENERAL_DIFFERENCES = {
    "per_device_train_batch_size": "training uses one process; for a LlamaFactory training on n GPUs, multiply "
    "gradient_accumulation_steps by n",
    "seed": "the same seed gives different initial weights and a different row order",
}
"""Differences that apply to every training."""


@dataclass(frozen=True)
class ImportedConfig:
    """A translated file: the validated run configuration with absolute paths, and the report."""

    path: Path
    config: RunConfig
    report: ImportReport

    def to_yaml(self, folder: Path) -> str:
        """Return the run configuration as YAML, with paths relative to a folder and differences as comments."""
        recipe = _relative(self.config.content["parameters"]["recipe"], folder.resolve())
        content = {**self.config.content, "parameters": {"recipe": recipe}}
        header = f"# Imported from LlamaFactory's {self.path.name} by `tuneline import`. Differences:\n#\n"
        body = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=110)
        return f"{header}{self.report.comments()}\n{body}"


def translate(path: Path) -> ImportedConfig:
    """Translate a file. Relative paths in it start at the working directory, as in LlamaFactory.

    Raises:
        RecipeError: Keys are not supported or have invalid values. One line per key: `file:line: key: message`.
    """
    source = read(path)
    translation = Translation(source)
    translation.classify_keys()
    if source.purpose == "export":
        translate_export(translation)
    elif source.purpose == "train":
        _training(translation)
    else:
        _refuse_purpose(translation)
    translation.finish()
    recipe = _validated(translation)
    name = recipe.registry.model_name if isinstance(recipe, Recipe) else "export"
    ordered = {key: translation.recipe[key] for key in type(recipe).model_fields if key in translation.recipe}
    content = {"run_name": f"{name}-{{date}}-{{time}}", "parameters": {"recipe": ordered}}
    return ImportedConfig(
        path, RunConfig(path, PIPELINES_BY_STAGE[recipe.stage][0], recipe, content), translation.report
    )


def _refuse_purpose(translation: Translation) -> None:
    """Reject a file that does not train, unless the table already rejects one of its keys."""
    source = translation.source
    keys = {"predict": "do_eval", "serve": "infer_backend" if "infer_backend" in source.content else MODEL_KEY}
    key = keys.get(source.purpose, "")
    if not translation.problems and key:
        translation.refuse(key, UNSUPPORTED_PURPOSES[key])


def _training(translation: Translation) -> None:
    stage = translate_stage(translation)
    translate_model(translation)
    translate_method(translation)
    translate_data(translation, stage)
    translate_training(translation, stage)
    _result(translation, stage)
    for key, text in GENERAL_DIFFERENCES.items():
        translation.note(key, text)


def _result(translation: Translation, stage: str) -> None:
    load = translation.recipe.get("load", {})
    if load.get("dtype") in HALF_DTYPES or load.get("quantization"):
        translation.add(
            "merge_adapter.max_kl",
            MAX_KL,
            "the merged model is compared with the adapter, and 16-bit rounding causes a difference",
        )
    name_key = "output_dir" if translation.config.output_dir else MODEL_KEY
    translation.set_value("registry.model_name", _model_name(translation), name_key)
    if stage in RECIPES:
        metric = RECIPES[stage].metrics[0]
        translation.add(
            "registry.gate.metric", metric, "a new model is promoted if it improves this metric on held-out rows"
        )


def _model_name(translation: Translation) -> str:
    """Return the registered model's name: the output folder, or model, method and stage."""
    config = translation.config
    name = Path(config.model_name_or_path or "model").name
    parts = list(Path(config.output_dir).parts) if config.output_dir else []
    while parts and parts[0] in OUTPUT_ROOTS:
        parts = parts[1:]
    if not parts or Path(config.output_dir or "").is_absolute():
        parts = [*parts[-1:], name, config.finetuning_type, config.stage]
    return re.sub(r"[^A-Za-z0-9_-]+", "-", "-".join(parts)).strip("-")


def _validated(translation: Translation) -> RunRecipe:
    """Validate the recipe with the model of its stage. Errors are reported at the LlamaFactory keys that cause them.

    Raises:
        RecipeError: The recipe is invalid. One line per error.
    """
    recipe, problems = located_yaml.validate(ALL_RECIPES[translation.recipe["stage"]], translation.recipe, ())
    for key, text in problems:
        origin = translation.origin_of(key, text)
        location = f"{'.'.join(map(str, key))} in the recipe" if key else "recipe"
        fix = " Correct the value." if text.startswith("Input should be") else ""
        translation.refuse(origin or MODEL_KEY, f"as {location}: {text}{fix}")
    if problems:
        translation.finish()
    assert isinstance(recipe, RunRecipe)
    return recipe


def _relative(recipe: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return a recipe with paths relative to a folder."""
    load = recipe.get("load", {})
    sections: dict[str, Any] = {"model": _relative_section(recipe["model"], folder)}
    if "sources" in recipe:
        sections["sources"] = [_relative_section(source, folder) for source in recipe["sources"]]
    if "to" in recipe:
        sections["to"] = os.path.relpath(recipe["to"], folder)
    if "adapters" in recipe:
        sections["adapters"] = [os.path.relpath(path, folder) for path in recipe["adapters"]]
    if "adapters" in load:
        sections["load"] = {**load, "adapters": [_relative_section(adapter, folder) for adapter in load["adapters"]]}
    return {**recipe, **sections}


def _relative_section(section: dict[str, Any], folder: Path) -> dict[str, Any]:
    path = section.get("path")
    return {**section, "path": os.path.relpath(path, folder)} if path else section
