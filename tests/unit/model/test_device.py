"""One module decides the device; who trains, loads, judges and measures follows it."""

import re
from pathlib import Path
from types import SimpleNamespace

import accelerate.state
import pytest
import torch
from transformers import training_args

import tuneline
from tuneline.config.training.base import SFTConfig
from tuneline.errors import RecipeError
from tuneline.model import device, precision
from tuneline.model.load import load_model
from tuneline.train import trainer
from tuneline.train.monitoring import mfu

KINDS = ["cuda", "npu", "xpu", "mps"]
ASKS_ITSELF = re.compile(r"(cuda|xpu|npu|mps)\.is_available|memory_allocated|cuda\.synchronize|current_accelerator")
FOR_CUDA_ALONE = {"model/kernels.py", "model/attention/choose.py", "train/optim/optimizer_factory.py"}
"""Libraries that exist for CUDA alone are asked for there."""


@pytest.fixture
def machine(monkeypatch):
    """Pretend that this machine has an accelerator, as torch and accelerate see it."""

    def fake(kind):
        accelerator = SimpleNamespace(type=kind) if kind != "cpu" else None
        monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: accelerator)
        for name in ("mps", "npu", "xpu"):
            here = (lambda *_: True) if name == kind else (lambda *_: False)
            monkeypatch.setattr(accelerate.state, f"is_{name}_available", here)
            monkeypatch.setattr(training_args, f"is_torch_{name}_available", here)
        if kind in ("npu", "xpu"):
            monkeypatch.setattr(torch, kind, SimpleNamespace(set_device=lambda which: None), raising=False)

    yield fake
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)


def arguments(folder):
    held = precision.Precision(torch.float32, torch.float32, None, "for a test")
    return trainer.training_arguments(SFTConfig(), held, folder)


@pytest.mark.parametrize("kind", [*KINDS, "cpu"])
def test_the_device_is_the_accelerator_of_torch(machine, kind):
    machine(kind)

    assert device.device_type() == kind


@pytest.mark.parametrize("kind", ["xpu", "mps", "cpu"])
def test_a_model_is_trained_on_the_device_that_it_is_loaded_onto(machine, tmp_path, kind):
    machine(kind)

    args = arguments(tmp_path)

    assert args.device.type == kind
    assert args.use_cpu is (kind == "cpu")


def test_another_device_for_training_than_for_the_model_is_refused(machine, tmp_path, monkeypatch):
    machine("mps")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")

    with pytest.raises(RecipeError, match=r"loaded onto mps, .* train on cpu. Unset ACCELERATE_USE_CPU"):
        arguments(tmp_path)


def test_weights_are_read_onto_the_device(machine, tiny_model):
    """The meta device stands for an accelerator here: weights can be moved onto it, and computed with nowhere."""
    machine("meta")

    assert load_model(tiny_model).device.type == "meta"


def test_the_best_rate_waits_for_the_accelerator(machine, monkeypatch):
    waits = []
    machine("mps")
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda: waits.append(1))

    mfu.measure_peak_flops(torch.float32, "meta")

    assert len(waits) == 2 * mfu.NUM_TIMINGS


@pytest.mark.parametrize(("free", "fits"), [(2_000, True), (999, False)])
def test_room_is_asked_of_the_accelerator(machine, monkeypatch, free, fits):
    monkeypatch.setattr(torch.accelerator, "get_memory_info", lambda: (free, 4_000))
    machine("cuda")
    assert device.has_memory_for(1_000) is fits

    machine("cpu")
    assert device.has_memory_for(1_000)


def test_no_other_module_decides_the_device():
    library = Path(tuneline.__file__).parent
    asking = {
        path.relative_to(library).as_posix() for path in library.rglob("*.py") if ASKS_ITSELF.search(path.read_text())
    }

    assert asking - FOR_CUDA_ALONE == {"model/device.py"}
