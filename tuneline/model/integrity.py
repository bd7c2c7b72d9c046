"""Is a model directory whole, safe to read, and of one piece with its tokenizer? No weights are read, headers only.

transformers finds a missing shard late, fills missing tensors with random numbers, and lets a tokenizer with more ids
than the embedding has rows fail in the middle of a training. All of that stands in the files' headers.
"""

import json
import logging
import zipfile
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from tuneline import limits
from tuneline.errors import RecipeError, SourceError

logger = logging.getLogger(__name__)

TensorShapes = dict[str, tuple[int, ...]]

SAFETENSORS_FILE, PICKLE_FILE = "model.safetensors", "pytorch_model.bin"
TOKENIZER_FILES = ("tokenizer.json", "vocab.*", "*.model", "*.tiktoken", "tekken.json")
EMBEDDING_SUFFIXES = (
    "embed_tokens.weight",
    "wte.weight",
    "word_embeddings.weight",
    "embed_in.weight",
    "embeddings.weight",
)
ADAPTER_CONFIG = "adapter_config.json"
MAX_NAMES_SHOWN = 3


def check_model_folder(
    folder: Path, *, allow_pickle: bool = False, trust_remote_code: bool = False, needs_weights: bool = True
) -> None:
    """Check the files of a model directory before anything is loaded from it.

    Args:
        folder: As `save_pretrained` writes it, as the hub has it, or converted from GGUF.
        allow_pickle: Weights may be in pickle files.
        trust_remote_code: The model's own Python code may run.
        needs_weights: They are looked at; what starts from scratch needs none.

    Raises:
        SourceError: A file is missing or damaged, or the parts do not belong together.
        RecipeError: The recipe does not allow what this model needs.
    """
    config = _read_json(folder / "config.json")
    _check_no_adapter(folder)
    _check_code(folder, config, trusted=trust_remote_code)
    shapes = _check_weights(folder, allow_pickle=allow_pickle) if needs_weights else {}
    _check_tokenizer(folder, _num_rows(shapes, config))


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise SourceError(f"model: {path.parent} has no {path.name}. Give a folder that save_pretrained wrote.")
    try:
        content = json.loads(limits.read_text(path, limits.MODEL_JSON_BYTES))
    except (ValueError, RecursionError) as error:
        raise SourceError(f"model: {path} is no JSON: {error}. Fetch it again.") from error
    if not isinstance(content, dict):
        raise SourceError(f"model: {path} holds a {type(content).__name__}, not an object. Fetch it again.")
    return content


def _check_no_adapter(folder: Path) -> None:
    """Refuse an adapter beside the weights: transformers adds it to them, and it is no part of their identity."""
    if (folder / ADAPTER_CONFIG).is_file():
        raise SourceError(
            f"model: {folder} holds an adapter ({ADAPTER_CONFIG}) beside the weights, which would become part of the model "
            "unseen. Take its files out, or move them into a folder of their own and name that under load.adapters."
        )


def _check_code(folder: Path, config: dict[str, Any], *, trusted: bool) -> None:
    """Refuse a model that runs its own code; one that transformers has a class for runs none unless it is trusted."""
    about = folder / "tokenizer_config.json"
    own, tokenizers = _custom_classes(config), _custom_classes(_read_json(about)) if about.is_file() else []
    needed = own if config.get("model_type") not in CONFIG_MAPPING_NAMES else []
    needed += tokenizers if not (folder / "tokenizer.json").is_file() else []
    if trusted and (own or tokenizers):
        _check_no_shadow(folder, own + tokenizers)
        logger.warning(
            "load.trust_remote_code: Python code that came with the model in %s is run with your rights: %s.",
            folder,
            ", ".join(own + tokenizers),
        )
    if needed and not trusted:
        raise RecipeError(
            f"load.trust_remote_code: {folder} brings its own Python code ({_shorten_list(needed)}), and transformers has none "
            f"for it (type {config.get('model_type')!r}). Read the code, then set load.trust_remote_code: true, or "
            "take another model."
        )


def _check_no_shadow(folder: Path, names: list[str]) -> None:
    """Refuse code of a repository of the hub where a local folder has its name: transformers would run that."""
    for name in names:
        repository = name.partition("--")[0] if "--" in name else ""
        if repository and Path(repository).is_dir():
            raise SourceError(
                f"model: the code of {folder} is {name}, of the hub's repository {repository}, and the local folder "
                f"{Path(repository).resolve()} would be run in its place. Rename that folder, or start elsewhere."
            )


def _custom_classes(about: dict[str, Any]) -> list[str]:
    """Return the classes that a config has from its own code."""
    names = [name for entry in (about.get("auto_map") or {}).values() for name in _as_list(entry)]
    return sorted({str(name) for name in names if name})


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _check_weights(folder: Path, *, allow_pickle: bool) -> TensorShapes:
    """Return the shapes of the tensors as far as they are known: pickles do not tell without being read."""
    for name in (SAFETENSORS_FILE, PICKLE_FILE):
        if (folder / name).is_file() or (folder / f"{name}.index.json").is_file():
            break
    else:
        found = _shorten_list(
            sorted(path.name for pattern in ("*.safetensors", "*.bin") for path in folder.glob(pattern))
        )
        raise SourceError(
            f"model: {folder} has neither {SAFETENSORS_FILE} nor {SAFETENSORS_FILE}.index.json, but {found or 'no weights'}. Give a folder "
            "that save_pretrained wrote."
        )
    if name == SAFETENSORS_FILE:
        return _check_safetensors(folder)
    if not allow_pickle:
        raise RecipeError(
            f"load.allow_pickle: {folder} has its weights in pickle files only, which can run code when they are read. "
            "Convert them to safetensors, or set load.allow_pickle: true if you trust them."
        )
    _check_pickles(folder)
    return {}


def _check_safetensors(folder: Path) -> TensorShapes:
    if (folder / SAFETENSORS_FILE).is_file():
        return _read_header(folder / SAFETENSORS_FILE)
    index = _read_index(folder / f"{SAFETENSORS_FILE}.index.json")
    shapes: TensorShapes = {}
    for shard in sorted(set(index.values())):
        found = _read_header(folder / shard)
        lacking = [name for name, place in index.items() if place == shard and name not in found]
        if lacking:
            raise SourceError(
                f"model: {SAFETENSORS_FILE}.index.json says that {shard} holds {_shorten_list(lacking)}, and it does not. The two are of "
                "different versions: fetch the model again."
            )
        shapes |= found
    return shapes


def _read_index(path: Path) -> dict[str, str]:
    """Return which shard holds each tensor; every shard is there."""
    places = _read_json(path).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise SourceError(f"model: {path} has no weight_map. Fetch it again.")
    missing = sorted({shard for shard in places.values() if not (path.parent / shard).is_file()})
    if missing:
        raise SourceError(
            f"model: {path.name} names {len(set(places.values()))} shards, and {path.parent} lacks {_shorten_list(missing)}. "
            "Fetch what is missing."
        )
    return places


def _read_header(path: Path) -> TensorShapes:
    """Return the shapes of a file's tensors; the library compares the header with the size of the file."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise SourceError(
            f"model: {path} of {path.stat().st_size} bytes is cut off or damaged: {error}. Fetch it again."
        ) from error


def _check_pickles(folder: Path) -> None:
    index = folder / f"{PICKLE_FILE}.index.json"
    names = [PICKLE_FILE] if (folder / PICKLE_FILE).is_file() else sorted(set(_read_index(index).values()))
    for path in (folder / name for name in names):
        with path.open("rb") as file:
            old_format = file.read(1) == b"\x80"
        if not old_format and not zipfile.is_zipfile(path):
            raise SourceError(f"model: {path} of {path.stat().st_size} bytes is cut off or damaged. Fetch it again.")


def _num_rows(shapes: TensorShapes, config: dict[str, Any]) -> int | None:
    """Return how many ids the embedding has rows for, from the weights, or else from the config."""
    for ending in EMBEDDING_SUFFIXES:
        rows = [shape[0] for name, shape in shapes.items() if name.endswith(ending) and "position" not in name]
        if rows:
            return max(rows)
    told = config.get("vocab_size", (config.get("text_config") or {}).get("vocab_size"))
    return int(told) if told else None


def _check_tokenizer(folder: Path, num_rows: int | None) -> None:
    if not any(path.is_file() for pattern in TOKENIZER_FILES for path in folder.glob(pattern)):
        raise SourceError(
            f"model: {folder} has no tokenizer (tokenizer.json, vocab.json or tokenizer.model). Copy the one that the "
            "model was trained with into it."
        )
    last, token = max(_token_ids(folder), default=(-1, ""))
    if num_rows is not None and last >= num_rows:
        raise SourceError(
            f"model: the tokenizer in {folder} gives {token!r} the id {last}, and the embedding has {num_rows} rows. "
            "They are of different models: take the tokenizer that belongs to the weights, or add tokens by "
            "load.new_tokens."
        )


def _token_ids(folder: Path) -> list[tuple[int, str]]:
    """Return ids and tokens, as far as JSON files tell them."""
    path = folder / "tokenizer.json"
    about = _read_json(path) if path.is_file() else {}
    vocabulary = (about.get("model") or {}).get("vocab") or {}
    ids = [(i, token) for token, i in vocabulary.items()] if isinstance(vocabulary, dict) else []
    ids += [(i, entry[0]) for i, entry in enumerate(vocabulary)] if isinstance(vocabulary, list) else []
    ids += [(entry["id"], entry["content"]) for entry in about.get("added_tokens") or []]
    config = folder / "tokenizer_config.json"
    added = (_read_json(config).get("added_tokens_decoder") or {}) if config.is_file() else {}
    return ids + [(int(i), entry["content"]) for i, entry in added.items()]


def _shorten_list(names: list[str]) -> str:
    more = f" and {len(names) - MAX_NAMES_SHOWN} more" if len(names) > MAX_NAMES_SHOWN else ""
    return ", ".join(names[:MAX_NAMES_SHOWN]) + more
