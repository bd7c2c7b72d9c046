"""Convert a GGUF file, or its parts, into a model directory, once; it is stored under the hash of its files.

transformers cannot save a model loaded from GGUF unless it was dequantized on loading.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path

from tuneline import checksums, owner, state
from tuneline.errors import SourceError
from tuneline.identity import digest, file_entries
from tuneline.model import gguf_split

CONVERTER = "dequantized to float32, 1"
"""Part of the key: a different conversion gives a different model."""


def convert_gguf(files: Sequence[Path], sha256: str | list[str] | None = None, *, weights: bool = True) -> Path:
    """Return the model directory of a GGUF file; convert it if necessary.

    Args:
        files: The file, or all its parts, in order.
        sha256: Expected hashes, one per file.
        weights: Whether weights are needed; if not, tokenizer and config are enough.

    Raises:
        SourceError: A file has a different hash than expected, or transformers cannot read it.
    """
    hashes = [file_entries(file.parent, [file])[0].sha256 for file in files]
    expected = [sha256] if isinstance(sha256, str) else sha256 or hashes
    if len(expected) != len(files):
        raise SourceError(
            f"model.sha256: {files[0].name} has {len(files)} parts, but the recipe gives {len(expected)} hashes. Give "
            f"one per part: [{', '.join(hashes)}]."
        )
    for file, actual, required in zip(files, hashes, expected, strict=True):
        if actual != required:
            raise SourceError(
                f"model.sha256: {file} has the hash {actual}, expected {required}. Download it again, or correct the "
                "recipe."
            )
    return convert_once(digest([*hashes, CONVERTER]), files, weights=weights)


def convert_once(key: str, files: Sequence[Path], *, weights: bool = True) -> Path:
    """Convert a file, or its parts, into the folder of `key` unless it exists; a lock prevents duplicate work."""
    with state.lock(f"model-{key[:32]}"):
        target = find_converted(key, weights=weights)
        if target is None:
            target = converted_folder(key, weights=weights)
            scratch, joined = (owner.scratch_folder() / f"{name}-{target.name}" for name in ("convert", "join"))
            for folder in (scratch, joined):
                shutil.rmtree(folder, ignore_errors=True)
            try:
                (_convert if weights else _convert_tokenizer)(_join_if_split(files, joined), scratch)
            finally:
                shutil.rmtree(joined, ignore_errors=True)
            checksums.write_for_copy(scratch, target)
            scratch.rename(target)
    return target


def converted_folder(key: str, *, weights: bool = True) -> Path:
    """Return the folder of a key; it may not exist."""
    return state.folder("models") / (key[:32] if weights else f"{key[:32]}-tokenizer")


def find_converted(key: str, *, weights: bool = True) -> Path | None:
    """Return the existing folder of a key: the whole model or, without `weights`, at least its tokenizer."""
    folders = [converted_folder(key), *([] if weights else [converted_folder(key, weights=False)])]
    return next((folder for folder in folders if checksums.is_usable_copy(folder)), None)


def _join_if_split(files: Sequence[Path], folder: Path) -> Path:
    """Return the file; parts are joined into a file in `folder`."""
    if len(files) == 1:
        return files[0]
    folder.mkdir()
    return gguf_split.join_parts(files, folder / "model.gguf")


def _convert(file: Path, folder: Path) -> None:
    gguf_split.check_not_split(file)
    import torch
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    transformers.logging.disable_progress_bar()
    folder_name, name = str(file.parent), file.name
    try:
        model, loading_info = AutoModelForCausalLM.from_pretrained(
            folder_name,
            gguf_file=name,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.float32,
            output_loading_info=True,
        )
        tokenizer = AutoTokenizer.from_pretrained(folder_name, gguf_file=name)
    except (ValueError, OSError, KeyError) as error:
        raise _read_error(file, error) from error
    if missing := sorted(loading_info["missing_keys"]):
        raise SourceError(
            f"{file} lacks {', '.join(missing[:3])} ({len(missing)} in total), which would be random numbers. Download "
            "it again."
        )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _convert_tokenizer(file: Path, folder: Path) -> None:
    """Convert the contents of the file header: tokenizer and config."""
    gguf_split.check_not_split(file)
    import transformers
    from transformers import AutoConfig, AutoTokenizer

    transformers.logging.disable_progress_bar()
    try:
        for auto_class in (AutoTokenizer, AutoConfig):
            auto_class.from_pretrained(str(file.parent), gguf_file=file.name).save_pretrained(folder)
    except (ValueError, OSError, KeyError) as error:
        raise _read_error(file, error) from error


def _read_error(file: Path, error: Exception) -> SourceError:
    return SourceError(f"{file} cannot be read as a GGUF model: {error}. Give a file that transformers supports.")
