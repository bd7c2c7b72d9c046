"""Check that a model directory is complete, safe to load, and matches its tokenizer. Only file headers are read.

transformers detects a missing shard late, fills missing tensors with random numbers, and lets a tokenizer with more ids
than embedding rows fail in the middle of a training. File headers are enough to detect all of this.
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
    """Check the files of a model directory before loading it.

    Args:
        folder: Model directory from `save_pretrained`, from the Hub, or converted from GGUF.
        allow_pickle: Whether pickle files are allowed.
        trust_remote_code: Whether custom Python code of the model is allowed.
        needs_weights: Whether weights are required and checked; False for training from scratch.

    Raises:
        SourceError: A file is missing or damaged, or the files do not match.
        RecipeError: The model needs pickle files or custom code, which the recipe does not allow.
    """
    config = _read_json(folder / "config.json")
    _check_no_adapter(folder)
    _check_code(folder, config, trusted=trust_remote_code)
    shapes = _check_weights(folder, allow_pickle=allow_pickle) if needs_weights else {}
    _check_tokenizer(folder, _num_rows(shapes, config))


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise SourceError(f"model: {path.parent} has no {path.name}. Give a folder written by save_pretrained.")
    try:
        content = json.loads(limits.read_text(path, limits.MODEL_JSON_BYTES))
    except (ValueError, RecursionError) as error:
        raise SourceError(f"model: {path} is not valid JSON: {error}. Download it again.") from error
    if not isinstance(content, dict):
        raise SourceError(f"model: {path} contains a {type(content).__name__}, expected an object. Download it again.")
    return content


def _check_no_adapter(folder: Path) -> None:
    """Reject an adapter next to the weights: transformers would load it, although it is not part of their hash."""
    if (folder / ADAPTER_CONFIG).is_file():
        raise SourceError(
            f"model: {folder} contains an adapter ({ADAPTER_CONFIG}) next to the weights, which transformers would "
            "load silently. Remove its files, or move them into a separate folder and add that to load.adapters."
        )


def _check_code(folder: Path, config: dict[str, Any], *, trusted: bool) -> None:
    """Reject a model that needs custom code unless it is trusted; known architectures ignore their custom code."""
    path = folder / "tokenizer_config.json"
    model_classes = _custom_classes(config)
    tokenizer_classes = _custom_classes(_read_json(path)) if path.is_file() else []
    required = model_classes if config.get("model_type") not in CONFIG_MAPPING_NAMES else []
    required += tokenizer_classes if not (folder / "tokenizer.json").is_file() else []
    if trusted and (model_classes or tokenizer_classes):
        _check_no_shadow(folder, model_classes + tokenizer_classes)
        logger.warning(
            "load.trust_remote_code: custom Python code of the model in %s runs with your permissions: %s.",
            folder,
            ", ".join(model_classes + tokenizer_classes),
        )
    if required and not trusted:
        raise RecipeError(
            f"load.trust_remote_code: {folder} needs custom Python code ({_shorten_list(required)}), because "
            f"transformers does not support the type {config.get('model_type')!r}. Read the code, then set "
            "load.trust_remote_code: true, or use another model."
        )


def _check_no_shadow(folder: Path, names: list[str]) -> None:
    """Reject code of a Hub repository if a local folder has the same name: transformers would run the local code."""
    for name in names:
        repository = name.partition("--")[0] if "--" in name else ""
        if repository and Path(repository).is_dir():
            raise SourceError(
                f"model: the code of {folder} is {name} in the Hub repository {repository}, but the local folder "
                f"{Path(repository).resolve()} would be used instead. Rename that folder, or run in another directory."
            )


def _custom_classes(config: dict[str, Any]) -> list[str]:
    """Return the classes of a config that are defined in custom code."""
    names = [name for entry in (config.get("auto_map") or {}).values() for name in _as_list(entry)]
    return sorted({str(name) for name in names if name})


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _check_weights(folder: Path, *, allow_pickle: bool) -> TensorShapes:
    """Return the shapes of the tensors; empty for pickle files, which would have to be loaded."""
    for name in (SAFETENSORS_FILE, PICKLE_FILE):
        if (folder / name).is_file() or (folder / f"{name}.index.json").is_file():
            break
    else:
        names = sorted(path.name for pattern in ("*.safetensors", "*.bin") for path in folder.glob(pattern))
        raise SourceError(
            f"model: {folder} has neither {SAFETENSORS_FILE} nor {SAFETENSORS_FILE}.index.json, but "
            f"{_shorten_list(names) or 'no weights'}. Give a folder written by save_pretrained."
        )
    if name == SAFETENSORS_FILE:
        return _check_safetensors(folder)
    if not allow_pickle:
        raise RecipeError(
            f"load.allow_pickle: {folder} has only pickle files as weights, which can run code when they are loaded. "
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
        shard_shapes = _read_header(folder / shard)
        missing = [name for name, file in index.items() if file == shard and name not in shard_shapes]
        if missing:
            raise SourceError(
                f"model: {SAFETENSORS_FILE}.index.json lists {_shorten_list(missing)} in {shard}, which does not "
                "contain it. The two are of different versions: download the model again."
            )
        shapes |= shard_shapes
    return shapes


def _read_index(path: Path) -> dict[str, str]:
    """Return the map from tensor to shard, after checking that every shard exists."""
    weight_map = _read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise SourceError(f"model: {path} has no weight_map. Download it again.")
    missing = sorted({shard for shard in weight_map.values() if not (path.parent / shard).is_file()})
    if missing:
        raise SourceError(
            f"model: {path.name} lists {len(set(weight_map.values()))} shards, but {path.parent} lacks "
            f"{_shorten_list(missing)}. Download the missing files."
        )
    return weight_map


def _read_header(path: Path) -> TensorShapes:
    """Return the shapes of a file's tensors; safetensors compares the header with the file size."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise SourceError(
            f"model: {path} of {path.stat().st_size} bytes is truncated or damaged: {error}. Download it again."
        ) from error


def _check_pickles(folder: Path) -> None:
    index = folder / f"{PICKLE_FILE}.index.json"
    names = [PICKLE_FILE] if (folder / PICKLE_FILE).is_file() else sorted(set(_read_index(index).values()))
    for path in (folder / name for name in names):
        with path.open("rb") as file:
            is_legacy = file.read(1) == b"\x80"
        if not is_legacy and not zipfile.is_zipfile(path):
            raise SourceError(
                f"model: {path} of {path.stat().st_size} bytes is truncated or damaged. Download it again."
            )


def _num_rows(shapes: TensorShapes, config: dict[str, Any]) -> int | None:
    """Return the number of embedding rows, from the weights or else from the config."""
    for suffix in EMBEDDING_SUFFIXES:
        rows = [shape[0] for name, shape in shapes.items() if name.endswith(suffix) and "position" not in name]
        if rows:
            return max(rows)
    vocab_size = config.get("vocab_size", (config.get("text_config") or {}).get("vocab_size"))
    return int(vocab_size) if vocab_size else None


def _check_tokenizer(folder: Path, num_rows: int | None) -> None:
    if not any(path.is_file() for pattern in TOKENIZER_FILES for path in folder.glob(pattern)):
        raise SourceError(
            f"model: {folder} has no tokenizer (tokenizer.json, vocab.json or tokenizer.model). Copy the tokenizer of "
            "the model into it."
        )
    max_id, token = max(_token_ids(folder), default=(-1, ""))
    if num_rows is not None and max_id >= num_rows:
        raise SourceError(
            f"model: in the tokenizer of {folder}, {token!r} has the id {max_id}, but the embedding has {num_rows} "
            "rows. They belong to different models: use the tokenizer of the weights, or add tokens with "
            "load.new_tokens."
        )


def _token_ids(folder: Path) -> list[tuple[int, str]]:
    """Return the ids and tokens in the JSON files of a tokenizer."""
    path = folder / "tokenizer.json"
    tokenizer = _read_json(path) if path.is_file() else {}
    vocabulary = (tokenizer.get("model") or {}).get("vocab") or {}
    ids = [(i, token) for token, i in vocabulary.items()] if isinstance(vocabulary, dict) else []
    ids += [(i, entry[0]) for i, entry in enumerate(vocabulary)] if isinstance(vocabulary, list) else []
    ids += [(entry["id"], entry["content"]) for entry in tokenizer.get("added_tokens") or []]
    config_path = folder / "tokenizer_config.json"
    added = (_read_json(config_path).get("added_tokens_decoder") or {}) if config_path.is_file() else {}
    return ids + [(int(i), entry["content"]) for i, entry in added.items()]


def _shorten_list(names: list[str]) -> str:
    more = f" and {len(names) - MAX_NAMES_SHOWN} more" if len(names) > MAX_NAMES_SHOWN else ""
    return ", ".join(names[:MAX_NAMES_SHOWN]) + more
