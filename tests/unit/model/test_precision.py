"""Dtypes of weights and computation, and the reason for them."""

import logging
from types import SimpleNamespace

import pytest
import torch

from tuneline.errors import RecipeError
from tuneline.model import precision

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


@pytest.fixture
def device(monkeypatch):
    """Return a function that simulates another device."""

    def fake(kind, *, capability=(8, 0), bfloat16=True):
        accelerator = SimpleNamespace(type=kind) if kind != "cpu" else None
        monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: accelerator)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
        monkeypatch.setattr(torch.xpu, "is_bf16_supported", lambda: bfloat16)
        monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda major, minor: bfloat16)
        monkeypatch.setattr(torch, "npu", SimpleNamespace(is_bf16_supported=lambda: bfloat16), raising=False)

    return fake


def choose(requested="auto", *, trains_all=False, model_dtype=None):
    dtypes = precision.choose_precision(requested, trains_all=trains_all, model_dtype=model_dtype)
    return dtypes.weights, dtypes.trained, dtypes.autocast


@pytest.mark.parametrize("kind", ["cuda", "cpu"])
def test_float32_disables_mixed_precision(device, kind):
    device(kind)

    assert choose("float32") == choose("float32", trains_all=True) == (FP32, FP32, None)


def test_pure_bfloat16_applies_to_trained_weights(device):
    device("cuda")

    assert choose("pure_bfloat16", trains_all=True) == (BF16, BF16, None)


@pytest.mark.parametrize(("capability", "half"), [((9, 0), BF16), ((8, 0), BF16), ((7, 5), FP16)])
def test_the_dtype_of_a_gpu_depends_on_its_capability(device, capability, half):
    device("cuda", capability=capability)

    assert choose() == (half, FP32, half)


@pytest.mark.parametrize("kind", ["npu", "xpu"])
@pytest.mark.parametrize(("bfloat16", "half"), [(True, BF16), (False, FP16)])
def test_other_accelerators_report_bfloat16_support(device, kind, bfloat16, half):
    device(kind, bfloat16=bfloat16)

    assert choose() == (half, FP32, half)


@pytest.mark.parametrize(("macos_14", "types"), [(True, (BF16, FP32, BF16)), (False, (FP32, FP32, None))])
def test_an_apple_gpu_supports_bfloat16_since_macos_14(device, macos_14, types):
    device("mps", bfloat16=macos_14)

    assert choose() == types


@pytest.mark.parametrize("capability", [(8, 0), (7, 0)])
def test_trained_weights_are_float32_and_computed_in_half_precision(device, capability):
    device("cuda", capability=capability)

    weights, trained, autocast = choose(trains_all=True)

    assert weights == trained == FP32
    assert autocast == (BF16 if capability == (8, 0) else FP16)


@pytest.mark.parametrize(("slow", "expected"), [(BF16, FP32), (FP32, BF16)])
def test_the_faster_dtype_is_chosen_on_a_cpu(device, monkeypatch, slow, expected):
    device("cpu")
    monkeypatch.setattr(precision, "_time", lambda dtype: 2.0 if dtype == slow else 1.0)

    assert precision.benchmark_dtypes()[0] == choose()[0] == expected
    assert choose()[2] == (BF16 if expected == BF16 else None)
    assert "benchmark" in precision.choose_precision("auto", trains_all=False).reason


@pytest.mark.parametrize(("slow", "computed"), [(BF16, None), (FP32, BF16)])
def test_trained_weights_on_a_cpu_are_always_float32(device, monkeypatch, slow, computed):
    device("cpu")
    monkeypatch.setattr(precision, "_time", lambda dtype: 2.0 if dtype == slow else 1.0)

    assert choose(trains_all=True) == (FP32, FP32, computed)


@pytest.mark.parametrize(
    ("kind", "is_supported", "dtype"),
    [("npu", True, BF16), ("npu", False, FP32), ("mps", True, BF16), ("cpu", True, FP32)],
)
def test_inference_uses_bfloat16_on_accelerators_that_support_it(device, kind, is_supported, dtype):
    device(kind, bfloat16=is_supported)

    assert precision.inference_dtype("auto") == dtype
    assert precision.inference_dtype("float32") == FP32


def test_bfloat16_inference_is_rejected_without_hardware_support(device):
    device("cuda", capability=(7, 5))

    assert precision.inference_dtype("auto") == FP32
    with pytest.raises(RecipeError, match=r"evaluate.dtype: bfloat16 .*\(7, 5\).*Set evaluate.dtype: auto"):
        precision.inference_dtype("bfloat16")


def test_bfloat16_inference_works_on_a_cpu_if_requested(device):
    device("cpu")

    assert precision.inference_dtype("bfloat16") == BF16


def test_the_recipe_takes_precedence(device):
    device("cpu")

    assert choose("bfloat16") == (BF16, FP32, BF16)
    assert choose("bfloat16", trains_all=True) == (FP32, FP32, BF16)
    assert precision.choose_precision("bfloat16", trains_all=False).reason.startswith("set in the recipe")


def test_float16_is_rejected_on_a_cpu_without_loss_scaler(device):
    device("cpu")

    with pytest.raises(RecipeError, match=r"load.dtype: float16 needs a loss scaler.*Set load.dtype"):
        precision.choose_precision("float16", trains_all=False)


@pytest.mark.parametrize("requested", ["bfloat16", "pure_bfloat16"])
def test_bfloat16_training_is_rejected_without_hardware_support(device, requested):
    device("cuda", capability=(7, 5))

    with pytest.raises(RecipeError, match=rf"load.dtype: {requested} .*\(7, 5\).*Set load.dtype: auto"):
        precision.choose_precision(requested, trains_all=False)


@pytest.mark.parametrize("requested", ["float16", "auto"])
def test_a_bfloat16_model_in_float16_logs_a_warning(device, caplog, requested):
    device("cuda", capability=(7, 0))

    with caplog.at_level(logging.WARNING):
        precision.choose_precision(requested, trains_all=False, model_dtype=BF16)

    assert "above 65504 overflow" in caplog.text


@pytest.mark.parametrize(("requested", "model_dtype"), [("float16", FP16), ("float16", None), ("bfloat16", BF16)])
def test_no_warning_is_logged_if_values_fit(device, caplog, requested, model_dtype):
    device("cuda")

    precision.choose_precision(requested, trains_all=False, model_dtype=model_dtype)

    assert not caplog.records
