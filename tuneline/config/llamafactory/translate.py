"""A configuration file of LlamaFactory -> a run configuration of ours, and a report of what differs in meaning."""

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
"""First folders of an `output_dir` that say nothing."""

HALF_DTYPES = ("bfloat16", "pure_bfloat16", "float16")
MAX_KL = 1e-3
"""What rounding to 16 bits may cost (nats a token)."""

MODEL_KEY = "model_name_or_path"
UNSUPPORTED_PURPOSES = {
    "do_eval": "evaluates alone, which has no counterpart: a run scores its model on held-out rows. Set do_train: true "
    "and dataset.",
    "infer_backend": "has no counterpart: models are not served here yet. Serve the folder that a run names (Weights) "
    "with vLLM or another server: it is a plain model of transformers.",
    MODEL_KEY: "is all that is asked for: there is nothing to train. Set do_train: true and dataset; models are not served "
    "here yet.",
}
"""Key of a file that trains nothing -> why it is refused."""

GENERAL_DIFFERENCES = {
    "per_device_train_batch_size": "one process trains; where LlamaFactory ran on n GPUs, multiply "
    "gradient_accumulation_steps by n",
    "seed": "the same seed draws other numbers: weights start, and rows come, in another way",
}
"""What differs in every training."""


@dataclass(frozen=True)
class ImportedConfig:
    """A translated file: the run configuration, checked, with absolute paths; and the report."""

    path: Path
    config: RunConfig
    report: ImportReport

    def to_yaml(self, folder: Path) -> str:
        """Write the run configuration down, with paths relative to a folder, and what differs as comments."""
        recipe = _relative(self.config.content["parameters"]["recipe"], folder.resolve())
        content = {**self.config.content, "parameters": {"recipe": recipe}}
        head = f"# Imported from LlamaFactory's {self.path.name} by `tuneline import`. What to know:\n#\n"
        body = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=110)
        return f"{head}{self.report.comments()}\n{body}"


def translate(path: Path) -> ImportedConfig:
    """Translate a file; names of files in it are relative to the working directory, as LlamaFactory has it.

    Raises:
        RecipeError: One line for each key that has no counterpart or a wrong value: `file:line: key: why, what to do`.
    """
    theirs = read(path)
    notes = Translation(theirs)
    notes.look_up()
    if theirs.purpose == "export":
        translate_export(notes)
    elif theirs.purpose == "train":
        _training(notes)
    else:
        _refuse_purpose(notes)
    notes.settle()
    recipe = _checked(notes)
    name = recipe.registry.model_name if isinstance(recipe, Recipe) else "export"
    ordered = {key: notes.recipe[key] for key in type(recipe).model_fields if key in notes.recipe}
    content = {"run_name": f"{name}-{{date}}-{{time}}", "parameters": {"recipe": ordered}}
    return ImportedConfig(path, RunConfig(path, PIPELINES_BY_STAGE[recipe.stage][0], recipe, content), notes.report)


def _refuse_purpose(notes: Translation) -> None:
    """Name what a file asks for that trains nothing, where the table has not named it yet."""
    theirs = notes.theirs
    asks = {"predict": "do_eval", "serve": "infer_backend" if "infer_backend" in theirs.content else MODEL_KEY}
    key = asks.get(theirs.purpose, "")
    if not notes.problems and key:
        notes.refuse(key, UNSUPPORTED_PURPOSES[key])


def _training(notes: Translation) -> None:
    stage = translate_stage(notes)
    translate_model(notes)
    translate_method(notes)
    translate_data(notes, stage)
    translate_training(notes, stage)
    _result(notes, stage)
    for key, text in GENERAL_DIFFERENCES.items():
        notes.tell(key, text)


def _result(notes: Translation, stage: str) -> None:
    load = notes.recipe.get("load", {})
    if load.get("dtype") in HALF_DTYPES or load.get("quantization"):
        notes.add("merge_adapter.max_kl", MAX_KL, "the merged model is held against the adapter; 16 bits round")
    named_by = "output_dir" if notes.written.output_dir else MODEL_KEY
    notes.put("registry.model_name", _model_name(notes), named_by)
    if stage in RECIPES:
        metric = RECIPES[stage].metrics[0]
        notes.add("registry.gate.metric", metric, "a new model is promoted if it is better by this on held-out rows")


def _model_name(notes: Translation) -> str:
    """Name the registered model after the folder of the output, or after model, method and stage."""
    written = notes.written
    name = Path(written.model_name_or_path or "model").name
    parts = list(Path(written.output_dir).parts) if written.output_dir else []
    while parts and parts[0] in OUTPUT_ROOTS:
        parts = parts[1:]
    if not parts or Path(written.output_dir or "").is_absolute():
        parts = [*parts[-1:], name, written.finetuning_type, written.stage]
    return re.sub(r"[^A-Za-z0-9_-]+", "-", "-".join(parts)).strip("-")


def _checked(notes: Translation) -> RunRecipe:
    """Check the recipe by the model of its stage; mistakes are told at the keys that they come from.

    Raises:
        RecipeError: One line for each mistake.
    """
    recipe, problems = located_yaml.validate(ALL_RECIPES[notes.recipe["stage"]], notes.recipe, ())
    for key, text in problems:
        origin = notes.origin_of(key, text)
        place = f"{'.'.join(map(str, key))} in a recipe" if key else "a recipe"
        more = " Correct the value." if text.startswith("Input should be") else ""
        notes.refuse(origin or MODEL_KEY, f"as {place}: {text}{more}")
    if problems:
        notes.settle()
    assert isinstance(recipe, RunRecipe)
    return recipe


def _relative(recipe: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return a recipe whose paths are relative to a folder."""
    load = recipe.get("load", {})
    sections: dict[str, Any] = {"model": _shorter(recipe["model"], folder)}
    if "sources" in recipe:
        sections["sources"] = [_shorter(source, folder) for source in recipe["sources"]]
    if "to" in recipe:
        sections["to"] = os.path.relpath(recipe["to"], folder)
    if "adapters" in recipe:
        sections["adapters"] = [os.path.relpath(path, folder) for path in recipe["adapters"]]
    if "adapters" in load:
        sections["load"] = {**load, "adapters": [_shorter(adapter, folder) for adapter in load["adapters"]]}
    return {**recipe, **sections}


def _shorter(section: dict[str, Any], folder: Path) -> dict[str, Any]:
    path = section.get("path")
    return {**section, "path": os.path.relpath(path, folder)} if path else section
