"""Convert a GGUF file into a plain model directory, once; kept under the hash of the file.

transformers refuses to save a model loaded from GGUF unless it was dequantized on load.
"""

import shutil
from pathlib import Path

from tuneline import owner, state
from tuneline.errors import SourceError
from tuneline.identity import digest, sha256_of

CONVERTER = "dequantized to float32, 1"
"""Part of the key: another way to convert makes another model."""


def converted(file: Path, sha256: str | None = None) -> Path:
    """Return the directory that `file` was converted into; convert it where that has not been done.

    Raises:
        SourceError: The file has another hash than `sha256`, or transformers cannot read it.
    """
    got = sha256_of(file)
    if sha256 is not None and got != sha256:
        raise SourceError(
            f"model.sha256: {file} has the hash {got}, expected {sha256}. Fetch it again, or correct the recipe."
        )
    return under_key(digest([got, CONVERTER]), file)


def under_key(key: str, file: Path) -> Path:
    """Convert `file` into the folder of `key`, unless it is there; two processes convert once."""
    done = state.folder("models") / key[:32]
    with state.lock(f"model-{key[:32]}"):
        if not done.is_dir():
            work = owner.work() / f"convert-{key[:32]}"
            shutil.rmtree(work, ignore_errors=True)
            _convert(file, work)
            work.rename(done)
    return done


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
        raise SourceError(
            f"{file} cannot be read as a GGUF model: {error}. Give a file that transformers supports."
        ) from error
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
