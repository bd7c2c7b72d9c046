"""Convert a GGUF file, or its parts, into a plain model directory, once; kept under the hash of its files.

transformers refuses to save a model loaded from GGUF unless it was dequantized on load.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path

from tuneline import checksums, owner, state
from tuneline.errors import SourceError
from tuneline.identity import digest, file_entries
from tuneline.model import gguf_split

CONVERTER = "dequantized to float32, 1"
"""Part of the key: another way to convert makes another model."""


def convert_gguf(files: Sequence[Path], sha256: str | list[str] | None = None, *, weights: bool = True) -> Path:
    """Return the directory that a file was converted into; convert it where that has not been done.

    Args:
        files: The file, or all its parts, in order.
        sha256: Expected hashes, one per file.
        weights: Whether they are needed; else tokenizer and config are enough.

    Raises:
        SourceError: A file has another hash than is expected, or transformers cannot read it.
    """
    got = [file_entries(file.parent, [file])[0].sha256 for file in files]
    expected = [sha256] if isinstance(sha256, str) else sha256 or got
    if len(expected) != len(files):
        raise SourceError(
            f"model.sha256: {files[0].name} has {len(files)} parts, and the recipe gives {len(expected)} hashes. Give "
            f"one per part: [{', '.join(got)}]."
        )
    for file, found, wanted in zip(files, got, expected, strict=True):
        if found != wanted:
            raise SourceError(
                f"model.sha256: {file} has the hash {found}, expected {wanted}. Fetch it again, or correct the recipe."
            )
    return convert_once(digest([*got, CONVERTER]), files, weights=weights)


def convert_once(key: str, files: Sequence[Path], *, weights: bool = True) -> Path:
    """Convert a file, or its parts, into the folder of `key`, unless it is there; two processes convert once."""
    with state.lock(f"model-{key[:32]}"):
        done = find_converted(key, weights=weights)
        if done is None:
            done = converted_folder(key, weights=weights)
            work, joined = (owner.scratch_folder() / f"{name}-{done.name}" for name in ("convert", "join"))
            for folder in (work, joined):
                shutil.rmtree(folder, ignore_errors=True)
            try:
                (_convert if weights else _convert_tokenizer)(_join_if_split(files, joined), work)
            finally:
                shutil.rmtree(joined, ignore_errors=True)
            checksums.write_for_copy(work, done)
            work.rename(done)
    return done


def converted_folder(key: str, *, weights: bool = True) -> Path:
    """Return the folder of a key, whether it is there or not."""
    return state.folder("models") / (key[:32] if weights else f"{key[:32]}-tokenizer")


def find_converted(key: str, *, weights: bool = True) -> Path | None:
    """Return the folder of what was converted under a key: the whole model, or at least its tokenizer."""
    folders = [converted_folder(key), *([] if weights else [converted_folder(key, weights=False)])]
    return next((folder for folder in folders if checksums.is_usable_copy(folder)), None)


def _join_if_split(files: Sequence[Path], folder: Path) -> Path:
    """Return the file, joined into a folder where it has parts."""
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
    place, name = str(file.parent), file.name
    try:
        model, told = AutoModelForCausalLM.from_pretrained(
            place,
            gguf_file=name,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.float32,
            output_loading_info=True,
        )
        tokenizer = AutoTokenizer.from_pretrained(place, gguf_file=name)
    except (ValueError, OSError, KeyError) as error:
        raise _read_error(file, error) from error
    if missing := sorted(told["missing_keys"]):
        raise SourceError(
            f"{file} lacks {', '.join(missing[:3])} ({len(missing)} in all), which would be random numbers. Fetch it "
            "again."
        )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _convert_tokenizer(file: Path, folder: Path) -> None:
    """Convert what the file's header holds: tokenizer and config."""
    gguf_split.check_not_split(file)
    import transformers
    from transformers import AutoConfig, AutoTokenizer

    transformers.logging.disable_progress_bar()
    try:
        for part in (AutoTokenizer, AutoConfig):
            part.from_pretrained(str(file.parent), gguf_file=file.name).save_pretrained(folder)
    except (ValueError, OSError, KeyError) as error:
        raise _read_error(file, error) from error


def _read_error(file: Path, error: Exception) -> SourceError:
    return SourceError(f"{file} cannot be read as a GGUF model: {error}. Give a file that transformers supports.")
