"""Small trainings that are interrupted and resumed, shared by the tests of checkpoints and optimizers."""

import errno
import subprocess
import sys
from pathlib import Path

from datasets import Dataset
from safetensors import SafetensorError

from tests import tiny
from tuneline.config.sections.data import TokenizeStepConfig
from tuneline.config.sections.load import LoadStepConfig
from tuneline.config.sections.method import LoraMethod
from tuneline.config.sections.model import DirectoryModel
from tuneline.config.training.base import SFTConfig
from tuneline.data import schema
from tuneline.data.align import align
from tuneline.data.corpus import Corpus
from tuneline.data.tokenization import tokenize
from tuneline.model import source
from tuneline.train import training_run

STEPS, EVERY = 11, 3
LORA = LoraMethod(type="lora", r=4, lora_alpha=8, lora_dropout=0.1)
SCRIPT = """
import os, signal, sys
from pathlib import Path
from tests.unit.train.checkpoint import trainings
def die(figures, step):
    if step == int(sys.argv[2]):
        os.kill(os.getpid(), getattr(signal, sys.argv[3]))
trainings.run_training(trainings.parts_of(Path(sys.argv[1])), listeners=(die,))
"""


def parts_of(model: Path):
    """Packed rows, and the manifests of base model and tokenizer."""
    tokenizer, base_model, _ = source.resolve_model(DirectoryModel(type="directory", path=model))
    rows = [schema.example("s", align.align_record(row, "alpaca")) for row in tiny.alpaca_rows(16)]
    split = {
        "train": Dataset.from_list(rows[:12], features=schema.EXAMPLE),
        "validation": Dataset.from_list(rows[12:], features=schema.EXAMPLE),
    }
    packed = tokenize.tokenize_pack(Corpus(split), tokenizer, TokenizeStepConfig(max_length=96))
    return packed, base_model, tokenizer


def config(**changes):
    return SFTConfig(**{"max_steps": STEPS, "learning_rate": 1e-2, "save_steps": EVERY, **changes})


def run_training(parts, method=LORA, listeners=(), *, keeps_state=False, **changes):
    load = LoadStepConfig(dtype="float32", max_length=96)
    return training_run.train(*parts, load, method, config(**changes), listeners, keeps_state=keeps_state)


def weights(checkpoint):
    return {path.name: path.read_bytes() for path in checkpoint.path.glob("*.safetensors")}


class DiedError(RuntimeError):
    """Raised by a listener to end a training."""


def fail_at(point):
    def die(figures, step):
        if step == point:
            raise DiedError

    return (die,)


def kill(model: Path, point: int, name: str):
    """Train in a new process that sends itself a signal after a step."""
    command = [sys.executable, "-c", SCRIPT, str(model), str(point), name]
    return subprocess.run(command, capture_output=True, text=True, check=False)


NO_SPACE = OSError(errno.ENOSPC, "No space left on device")
NO_SPACE_OF_SAFETENSORS = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
