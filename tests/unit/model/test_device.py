"""One module decides the device, and training, loading and measuring use it."""

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
QUERIES_DEVICE = re.compile(r"(cuda|xpu|npu|mps)\.is_available|memory_allocated|cuda\.synchronize|current_accelerator")
CUDA_ONLY = {"model/kernels.py", "model/attention/implementation.py", "train/optim/optimizer_factory.py"}
"""Modules for CUDA-only libraries may query the device."""


@pytest.fixture
def machine(monkeypatch):
    """Return a function that simulates an accelerator for torch and accelerate."""

    def fake(kind):
        accelerator = SimpleNamespace(type=kind) if kind != "cpu" else None
        monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: accelerator)
        for name in ("mps", "npu", "xpu"):
            is_available = (lambda *_: True) if name == kind else (lambda *_: False)
            monkeypatch.setattr(accelerate.state, f"is_{name}_available", is_available)
            monkeypatch.setattr(training_args, f"is_torch_{name}_available", is_available)
        if kind in ("npu", "xpu"):
            monkeypatch.setattr(torch, kind, SimpleNamespace(set_device=lambda which: None), raising=False)

    yield fake
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)


def arguments(folder):
    dtypes = precision.Precision(torch.float32, torch.float32, None, "for a test")
    return trainer.training_arguments(SFTConfig(), dtypes, folder)


@pytest.mark.parametrize("kind", [*KINDS, "cpu"])
def test_the_device_is_the_accelerator_of_torch(machine, kind):
    machine(kind)

    assert device.device_type() == kind


@pytest.mark.parametrize("kind", ["xpu", "mps", "cpu"])
def test_training_uses_the_device_of_the_model(machine, tmp_path, kind):
    machine(kind)

    args = arguments(tmp_path)

    assert args.device.type == kind
    assert args.use_cpu is (kind == "cpu")


def test_different_devices_for_model_and_training_are_rejected(machine, tmp_path, monkeypatch):
    machine("mps")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")

    with pytest.raises(RecipeError, match=r"loaded onto mps, .* train on cpu. Unset ACCELERATE_USE_CPU"):
        arguments(tmp_path)


def test_weights_are_loaded_onto_the_device(machine, tiny_model):
    """The meta device simulates an accelerator: weights can be moved onto it."""
    machine("meta")

    assert load_model(tiny_model).device.type == "meta"


def test_the_peak_flops_measurement_waits_for_the_accelerator(machine, monkeypatch):
    waits = []
    machine("mps")
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda: waits.append(1))

    mfu.measure_peak_flops(torch.float32, "meta")

    assert len(waits) == 2 * mfu.NUM_TIMINGS


@pytest.mark.parametrize(("free", "fits"), [(2_000, True), (999, False)])
def test_free_memory_is_read_from_the_accelerator(machine, monkeypatch, free, fits):
    monkeypatch.setattr(torch.accelerator, "get_memory_info", lambda: (free, 4_000))
    machine("cuda")
    assert device.has_memory_for(1_000) is fits

    machine("cpu")
    assert device.has_memory_for(1_000)


def test_no_other_module_decides_the_device():
    library = Path(tuneline.__file__).parent
    modules = {
        path.relative_to(library).as_posix()
        for path in library.rglob("*.py")
        if QUERIES_DEVICE.search(path.read_text())
    }

    assert modules - CUDA_ONLY == {"model/device.py"}
