"""Translate LlamaFactory's data keys to the sections `sources`, `merge`, `align`, `tokenize` and `template`."""

import re
from pathlib import Path
from typing import Any

from tuneline.config.datasets import llamafactory_dataset_info
from tuneline.config.llamafactory import keys
from tuneline.config.llamafactory.translation import Translation
from tuneline.config.parsing.located_yaml import suggest
from tuneline.config.stages import RECIPES
from tuneline.errors import RecipeError, did_you_mean

DATASET_INFO = "dataset_info.json"
DEFAULT_VALIDATION_FRACTION = 0.1
MAX_NAMES_LISTED = 12
"""Number of known names that a message lists."""

FORMATS_BY_ROWS: dict[str, tuple[str, ...]] = {"pretrain": ("text",), "preference": ("preference",), "kto": ("kto",)}
"""Kind of rows -> formats they can be built from. Other kinds accept all formats except pairs and labels."""


def translate_data(translation: Translation, stage: str) -> None:
    """Translate the datasets and the data options."""
    _sources(translation, stage)
    _mixture(translation)
    _held_out(translation)
    _rows(translation, stage)
    _template(translation, stage)
    translation.add(
        "align.bad_rows",
        "drop",
        "invalid rows are skipped, as in LlamaFactory, and counted; more than half of all rows is an error",
    )


def _sources(translation: Translation, stage: str) -> None:
    names = list(dict.fromkeys(translation.config.dataset or []))
    if not names:
        translation.refuse("dataset", "is required. Set names of datasets in dataset_info.json, separated by commas.")
        return
    if len(names) < len(translation.config.dataset or []):
        translation.note("dataset", "each dataset is used once, as in LlamaFactory; set sources.repeats to repeat it")
    entries = _entries(translation, names)
    rows = RECIPES[stage].rows if stage in RECIPES else None
    for name, entry in entries.items():
        row_format = entry.get("format", "auto")
        allowed = FORMATS_BY_ROWS.get(rows or "")
        is_allowed = row_format in allowed if allowed else row_format not in ("preference", "kto")
        if rows and not is_allowed:
            translation.refuse(
                "dataset",
                f"{name!r} has rows of format {row_format}, which stage {stage} does not support. Set another dataset "
                "or another stage.",
            )
    sources = [_source(translation, name, entry) for name, entry in entries.items()]
    translation.set_value("sources", sources, "dataset", "dataset_dir", "max_samples")


def _entries(translation: Translation, names: list[str]) -> dict[str, dict[str, Any]]:
    """Look up datasets by name. Unknown names are rejected."""
    if translation.config.dataset_dir == "ONLINE":
        return {name: {"hub": name, "format": "alpaca"} for name in names}
    path = _dataset_info(translation)
    try:
        datasets = llamafactory_dataset_info.read(path) if path else llamafactory_dataset_info.ImportedDatasets()
    except RecipeError as error:
        translation.other_errors += str(error).splitlines()
        return {}
    for name in names if path else ():
        if name in datasets.left_out:
            translation.refuse("dataset", f"{name!r} of {path} cannot be used: it {datasets.left_out[name]}.")
        elif name not in datasets.entries:
            translation.refuse(
                "dataset", f"{path} has no {name!r}.{_suggest(name, list(datasets.entries))} Correct the name."
            )
        for text in datasets.notes.get(name, []):
            translation.note("dataset", f"{name} {text}")
    return {name: datasets.entries[name] for name in names if name in datasets.entries}


def _dataset_info(translation: Translation) -> Path | None:
    """Return the path of dataset_info.json. Reject a missing file."""
    folder = translation.config.dataset_dir
    path = Path(folder) / DATASET_INFO
    if folder.startswith("REMOTE:"):
        translation.refuse(
            "dataset_dir",
            f"{folder!r} is not supported: {DATASET_INFO} must be in a local folder. Download the repository, and set "
            "its folder.",
        )
        return None
    if not path.is_file():
        translation.refuse(
            "dataset_dir",
            f"{path} does not exist in {Path.cwd()}. Run the command in the directory where you run llamafactory-cli, "
            "or set dataset_dir to the full path of the folder.",
        )
        return None
    return path


def _suggest(name: str, known: list[str]) -> str:
    """Return the closest name, or all names if there are few."""
    return suggest(name, known) if len(known) <= MAX_NAMES_LISTED else did_you_mean(name, known)


def _source(translation: Translation, name: str, entry: dict[str, Any]) -> dict[str, Any]:
    source = {"name": re.sub(r"[^A-Za-z0-9_.-]+", "-", name), **entry}
    if entry.get("format") == "openai":
        translation.note(
            "dataset",
            f"{name}: LlamaFactory adds the system message 'detailed thinking off' to every row with formatting "
            "openai; Tuneline does not",
        )
    if entry.get("sample") == "random":
        translation.note(
            "dataset", f"{name}: rows are sampled without replacement, even if num_samples exceeds their number"
        )
    max_samples = translation.config.max_samples
    if max_samples is None:
        return source
    max_rows = min(max_samples, entry.get("max_rows", max_samples))
    return source | {"max_rows": max_rows, "sample": entry.get("sample", "first")}


def _mixture(translation: Translation) -> None:
    config = translation.config
    sources, weights = translation.recipe.get("sources", []), config.interleave_probs
    if config.mix_strategy == "interleave_once":
        translation.refuse("mix_strategy", "'interleave_once' is not supported. Set interleave_over or concat.")
        return
    if config.mix_strategy == "concat" or len(sources) == 1:
        translation.set_value("merge.strategy", "concatenate", "mix_strategy")
        return
    translation.set_value("merge.strategy", config.mix_strategy, "mix_strategy")
    if weights is None:
        translation.note(
            "mix_strategy", "datasets are sampled at random with equal weights; LlamaFactory alternates between them"
        )
        weights = [1.0] * len(sources)
    if len(weights) != len(sources) and sources:
        translation.refuse(
            "interleave_probs", f"expected {len(sources)} values, one per dataset, got {len(weights)}. Set one each."
        )
    for source, weight in zip(sources, weights, strict=False):
        source["weight"] = weight
    if config.interleave_probs:
        translation.set_value("sources", sources, "interleave_probs")


def _held_out(translation: Translation) -> None:
    size = translation.config.val_size
    if size >= 1:
        translation.refuse(
            "val_size",
            f"expected a fraction below 1, got {size:g}, which LlamaFactory reads as a number of rows. Set a fraction, "
            f"like {DEFAULT_VALIDATION_FRACTION}.",
        )
    elif size > 0:
        translation.set_value("merge.validation_fraction", size, "val_size")
    else:
        translation.add(
            "merge.validation_fraction",
            DEFAULT_VALIDATION_FRACTION,
            "val_size is not set, for which LlamaFactory does not evaluate; Tuneline holds out this fraction to "
            "evaluate the new model",
        )
    translation.note(
        "dataset", "exact duplicates of a row are removed, and copies of held-out rows are not used for training"
    )


def _rows(translation: Translation, stage: str) -> None:
    config = translation.config
    translation.set_value("tokenize.max_length", config.cutoff_len, "cutoff_len")
    packed = config.packing if config.packing is not None else stage == "pretrain"
    if stage == "pretrain":
        translation.set_value("tokenize.packing", "wrapped" if packed else False, "packing")
        translation.set_value("tokenize.overlong", "right", "cutoff_len")
        if packed:
            translation.note(
                "packing",
                "texts are concatenated and cut into rows; texts in one row attend to each other, as in LlamaFactory",
            )
    else:
        translation.set_value("tokenize.packing", bool(packed or config.neat_packing), "packing", "neat_packing")
        translation.set_value("tokenize.overlong", "proportional", "cutoff_len")
        translation.note("cutoff_len", "truncation keeps an answer's header and end token; LlamaFactory removes them")
        if packed and not config.neat_packing:
            translation.note(
                "packing",
                "examples in one row do not attend to each other; in LlamaFactory, without neat_packing, they do",
            )
    translation.set_value("tokenize.max_cut_fraction", 1.0, "cutoff_len")
    if config.train_on_prompt and config.mask_history:
        translation.refuse(
            "mask_history", "cannot be combined with train_on_prompt, in LlamaFactory either. Remove one of the two."
        )
    train_on = "all" if config.train_on_prompt else "last_assistant" if config.mask_history else "assistant"
    translation.set_value("tokenize.train_on", train_on, "train_on_prompt", "mask_history")


def _template(translation: Translation, stage: str) -> None:
    if stage == "pretrain" or translation.config.template is None:
        translation.add("template", "auto", "the model's own template, or that of its model family")
        return
    system = translate_template(translation)
    if translation.config.template in keys.templates().thinking:
        _thinking(translation)
    translation.set_if_enabled("align.system", system or None, "default_system", "template")


def translate_template(translation: Translation) -> str | None:
    """Translate the chat template and return the default system message, if any."""
    config, templates = translation.config, keys.templates()
    name = config.template
    if name is None:
        translation.add("template", "auto", "the model's own template, or that of its model family")
        return config.default_system
    if name not in templates.all_names():
        translation.refuse("template", f"unknown template {name!r}.{suggest(name, templates.all_names())}")
        return None
    if same := templates.same.get(name):
        translation.set_value("template", same.builtin, "template")
        if same.differs:
            translation.note("template", f"the built-in template {same.builtin} differs: {same.differs}")
    else:
        translation.set_value("template", "auto", "template")
        translation.note("template", f"the model's own template is used, which {name} reproduces")
    return config.default_system if config.default_system is not None else same.system if same else None


def _thinking(translation: Translation) -> None:
    config = translation.config
    if not config.enable_thinking:
        translation.set_value("template_arguments.enable_thinking", False, "enable_thinking")
    rewritten_history = "last_turn" if config.mask_history else "each_turn"
    translation.add(
        "tokenize.rewritten_history",
        rewritten_history,
        "templates of reasoning models rewrite earlier turns; each answer is trained with the history that the model "
        "sees at inference",
    )
