"""LlamaFactory's keys of the data -> `sources`, `merge`, `align`, `tokenize` and `template` of a recipe."""

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
"""So many names fit into one line of a message."""

FORMATS_BY_ROWS: dict[str, tuple[str, ...]] = {"pretrain": ("text",), "preference": ("preference",), "kto": ("kto",)}
"""What rows are for -> formats that they can be made of; where it is not here, all but pairs and labels."""


def translate_data(notes: Translation, stage: str) -> None:
    """Translate the data sets and what is made of them."""
    _sources(notes, stage)
    _mixture(notes)
    _held_out(notes)
    _rows(notes, stage)
    _template(notes, stage)
    notes.add(
        "align.bad_rows",
        "drop",
        "rows that cannot be read are left out, as LlamaFactory does, and counted; more than half of them is an error",
    )


def _sources(notes: Translation, stage: str) -> None:
    names = list(dict.fromkeys(notes.written.dataset or []))
    if not names:
        notes.refuse("dataset", "is required: name data sets of dataset_info.json, separated by commas.")
        return
    if len(names) < len(notes.written.dataset or []):
        notes.tell("dataset", "each data set counts once, as in LlamaFactory; sources.repeats makes it count more")
    entries = _entries(notes, names)
    rows = RECIPES[stage].rows if stage in RECIPES else None
    for name, entry in entries.items():
        form = entry.get("format", "auto")
        fits = form in FORMATS_BY_ROWS[rows] if rows in FORMATS_BY_ROWS else form not in ("preference", "kto")
        if rows and not fits:
            notes.refuse(
                "dataset",
                f"{name!r} holds rows of format {form}, and stage {stage} does not train on such. "
                "Name another data set, or another stage.",
            )
    sources = [_source(notes, name, entry) for name, entry in entries.items()]
    notes.put("sources", sources, "dataset", "dataset_dir", "max_samples")


def _entries(notes: Translation, names: list[str]) -> dict[str, dict[str, Any]]:
    """Look data sets up, by name; what is not found is refused."""
    if notes.written.dataset_dir == "ONLINE":
        return {name: {"hub": name, "format": "alpaca"} for name in names}
    path = _registry(notes)
    try:
        found = llamafactory_dataset_info.read(path) if path else llamafactory_dataset_info.ImportedDatasets()
    except RecipeError as error:
        notes.others += str(error).splitlines()
        return {}
    for name in names if path else ():
        if name in found.left_out:
            notes.refuse("dataset", f"{name!r} of {path} cannot be used: it {found.left_out[name]}.")
        elif name not in found.entries:
            notes.refuse("dataset", f"{path} has no {name!r}.{_near(name, list(found.entries))} Correct the name.")
        for text in found.notes.get(name, []):
            notes.tell("dataset", f"{name} {text}")
    return {name: found.entries[name] for name in names if name in found.entries}


def _registry(notes: Translation) -> Path | None:
    """Return the file that describes the data sets; refuse one that is not there."""
    folder = notes.written.dataset_dir
    path = Path(folder) / DATASET_INFO
    if folder.startswith("REMOTE:"):
        notes.refuse(
            "dataset_dir",
            f"{folder!r} has no counterpart: {DATASET_INFO} is read from a folder. Fetch the repository, and write its "
            "folder.",
        )
        return None
    if not path.is_file():
        notes.refuse(
            "dataset_dir",
            f"there is no file {path} in {Path.cwd()}. Start the command where you start llamafactory-cli, or write "
            "the whole path of the folder into dataset_dir.",
        )
        return None
    return path


def _near(name: str, known: list[str]) -> str:
    """Name the nearest; of few all."""
    return suggest(name, known) if len(known) <= MAX_NAMES_LISTED else did_you_mean(name, known)


def _source(notes: Translation, name: str, entry: dict[str, Any]) -> dict[str, Any]:
    source = {"name": re.sub(r"[^A-Za-z0-9_.-]+", "-", name), **entry}
    if entry.get("format") == "openai":
        notes.tell(
            "dataset",
            f"{name}: LlamaFactory puts the system message 'detailed thinking off' into every row of "
            "formatting openai; it is left out here",
        )
    if entry.get("sample") == "random":
        notes.tell("dataset", f"{name}: no row is drawn twice, though num_samples may ask for more than there are")
    most = notes.written.max_samples
    if most is None:
        return source
    return source | {"max_rows": min(most, entry.get("max_rows", most)), "sample": entry.get("sample", "first")}


def _mixture(notes: Translation) -> None:
    written = notes.written
    sources, odds = notes.recipe.get("sources", []), written.interleave_probs
    if written.mix_strategy == "interleave_once":
        notes.refuse("mix_strategy", "'interleave_once' has no counterpart. Take interleave_over, or concat.")
        return
    if written.mix_strategy == "concat" or len(sources) == 1:
        notes.put("merge.strategy", "concatenate", "mix_strategy")
        return
    notes.put("merge.strategy", written.mix_strategy, "mix_strategy")
    if odds is None:
        notes.tell("mix_strategy", "data sets are drawn at random with equal weights; LlamaFactory takes them in turn")
        odds = [1.0] * len(sources)
    if len(odds) != len(sources) and sources:
        notes.refuse("interleave_probs", f"holds {len(odds)} numbers for {len(sources)} data sets. Give one for each.")
    for source, share in zip(sources, odds, strict=False):
        source["weight"] = share
    if written.interleave_probs:
        notes.put("sources", sources, "interleave_probs")


def _held_out(notes: Translation) -> None:
    size = notes.written.val_size
    if size >= 1:
        notes.refuse(
            "val_size",
            f"{size:g} is a number of rows, and a share is held out here. Give one below 1, like {DEFAULT_VALIDATION_FRACTION}.",
        )
    elif size > 0:
        notes.put("merge.validation_fraction", size, "val_size")
    else:
        notes.add(
            "merge.validation_fraction",
            DEFAULT_VALIDATION_FRACTION,
            "val_size is not set, and LlamaFactory then measures nothing; "
            "here a new model is judged on held-out rows, so that many are not trained on",
        )
    notes.tell("dataset", "exact copies of a row count once, and none of a held-out row is trained on")


def _rows(notes: Translation, stage: str) -> None:
    written = notes.written
    notes.put("tokenize.max_length", written.cutoff_len, "cutoff_len")
    packed = written.packing if written.packing is not None else stage == "pretrain"
    if stage == "pretrain":
        notes.put("tokenize.packing", "wrapped" if packed else False, "packing")
        notes.put("tokenize.overlong", "right", "cutoff_len")
        if packed:
            notes.tell(
                "packing", "texts are one stream that is cut into rows; those in one row see each other, as there"
            )
    else:
        notes.put("tokenize.packing", bool(packed or written.neat_packing), "packing", "neat_packing")
        notes.put("tokenize.overlong", "proportional", "cutoff_len")
        notes.tell("cutoff_len", "cuts leave an answer its header and its stop token; LlamaFactory cuts those off")
        if packed and not written.neat_packing:
            notes.tell(
                "packing", "examples in one row do not see each other; in LlamaFactory, without neat_packing, they do"
            )
    notes.put("tokenize.max_cut_fraction", 1.0, "cutoff_len")
    if written.train_on_prompt and written.mask_history:
        notes.refuse("mask_history", "train_on_prompt is set as well, and LlamaFactory refuses both. Keep one.")
    trained = "all" if written.train_on_prompt else "last_assistant" if written.mask_history else "assistant"
    notes.put("tokenize.train_on", trained, "train_on_prompt", "mask_history")


def _template(notes: Translation, stage: str) -> None:
    if stage == "pretrain" or notes.written.template is None:
        notes.add("template", "auto", "the model's own, or that of its family")
        return
    system = translate_template(notes)
    if notes.written.template in keys.templates().thinking:
        _thinking(notes)
    notes.put_if("align.system", system or None, "default_system", "template")


def translate_template(notes: Translation) -> str | None:
    """Translate the chat template; returns the default system message, if there is one."""
    written, known = notes.written, keys.templates()
    name = written.template
    if name is None:
        notes.add("template", "auto", "the model's own, or that of its family")
        return written.default_system
    if name not in known.known():
        notes.refuse("template", f"unknown template {name!r}.{suggest(name, known.known())}")
        return None
    if same := known.same.get(name):
        notes.put("template", same.ours, "template")
        if same.differs:
            notes.tell("template", f"{same.ours} is not the same, character by character: {same.differs}")
    else:
        notes.put("template", "auto", "template")
        notes.tell("template", f"the model's own template is taken, which {name} imitates")
    return written.default_system if written.default_system is not None else same.system if same else None


def _thinking(notes: Translation) -> None:
    written = notes.written
    if not written.enable_thinking:
        notes.put("template_arguments.enable_thinking", False, "enable_thinking")
    how = "last_turn" if written.mask_history else "each_turn"
    notes.add(
        "tokenize.rewritten_history",
        how,
        "templates of thinking models rewrite earlier turns; each answer is "
        "trained behind the history that the model will see",
    )
