"""Convert a GGUF file into a plain model directory, once; kept under the hash of the file.

transformers refuses to save a model loaded from GGUF unless it was dequantized on load.
"""

import shutil
from pathlib import Path

from tuneline import checksums, state
from tuneline.errors import SourceError
from tuneline.identity import digest, file_entries

CONVERTER = "dequantized to float32, 1"
"""Part of the key: another way to convert makes another model."""


def converted(file: Path, sha256: str | None = None, *, weights: bool = True) -> Path:
    """Return the directory that `file` was converted into; convert it where that has not been done.

    Args:
        file: A GGUF file.
        sha256: Its hash, if it is known.
        weights: Whether they are needed; else tokenizer and config are enough.

    Raises:
        SourceError: The file has another hash than `sha256`, or transformers cannot read it.
    """
    got = file_entries(file.parent, [file])[0].sha256
    if sha256 is not None and got != sha256:
        raise SourceError(
            f"model.sha256: {file} has the hash {got}, expected {sha256}. Fetch it again, or correct the recipe."
        )
    return under_key(digest([got, CONVERTER]), file, weights=weights)


def under_key(key: str, file: Path, *, weights: bool = True) -> Path:
    """Convert `file` into the folder of `key`, unless it is there; two processes convert once."""
    with state.lock(f"model-{key[:32]}"):
        done = find(key, weights=weights)
        if done is None:
            done = folder_of(key, weights=weights)
            work = state.folder("work") / f"convert-{done.name}"
            shutil.rmtree(work, ignore_errors=True)
            (_convert if weights else _convert_tokenizer)(file, work)
            checksums.write_for_copy(work, done)
            work.rename(done)
    return done


def folder_of(key: str, *, weights: bool = True) -> Path:
    """Return the folder of a key, whether it is there or not."""
    return state.folder("models") / (key[:32] if weights else f"{key[:32]}-tokenizer")


def find(key: str, *, weights: bool = True) -> Path | None:
    """Return the folder of what was converted under a key: the whole model, or at least its tokenizer."""
    folders = [folder_of(key), *([] if weights else [folder_of(key, weights=False)])]
    return next((folder for folder in folders if checksums.is_usable_copy(folder)), None)


def _convert(file: Path, folder: Path) -> None:
    import torch
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    transformers.logging.disable_progress_bar()
    place, name = str(file.parent), file.name
    try:
        model = AutoModelForCausalLM.from_pretrained(
            place, gguf_file=name, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
        )
        tokenizer = AutoTokenizer.from_pretrained(place, gguf_file=name)
    except (ValueError, OSError, KeyError) as error:
        raise _unreadable(file, error) from error
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _convert_tokenizer(file: Path, folder: Path) -> None:
    """Convert what the file's header holds: tokenizer and config."""
    import transformers
    from transformers import AutoConfig, AutoTokenizer

    transformers.logging.disable_progress_bar()
    try:
        for part in (AutoTokenizer, AutoConfig):
            part.from_pretrained(str(file.parent), gguf_file=file.name).save_pretrained(folder)
    except (ValueError, OSError, KeyError) as error:
        raise _unreadable(file, error) from error


def _unreadable(file: Path, error: Exception) -> SourceError:
    return SourceError(f"{file} cannot be read as a GGUF model: {error}. Give a file that transformers supports.")
