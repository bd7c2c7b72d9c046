"""The types of weights and computation, with their reason."""

import logging
from types import SimpleNamespace

import pytest
import torch

from tuneline.errors import RecipeError
from tuneline.model import precision

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


@pytest.fixture
def device(monkeypatch):
    """Pretend that this machine has another device."""

    def fake(kind, *, capability=(8, 0), bfloat16=True):
        accelerator = SimpleNamespace(type=kind) if kind != "cpu" else None
        monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: accelerator)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
        monkeypatch.setattr(torch.xpu, "is_bf16_supported", lambda: bfloat16)
        monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda major, minor: bfloat16)
        monkeypatch.setattr(torch, "npu", SimpleNamespace(is_bf16_supported=lambda: bfloat16), raising=False)

    return fake


def held(requested="auto", *, trains_all=False, model_dtype=None):
    it = precision.choose_precision(requested, trains_all=trains_all, model_dtype=model_dtype)
    return it.weights, it.trained, it.autocast


@pytest.mark.parametrize("kind", ["cuda", "cpu"])
def test_float32_mixes_nothing(device, kind):
    device(kind)

    assert held("float32") == held("float32", trains_all=True) == (FP32, FP32, None)


def test_pure_bfloat16_holds_trained_weights_in_it_too(device):
    device("cuda")

    assert held("pure_bfloat16", trains_all=True) == (BF16, BF16, None)


@pytest.mark.parametrize(("capability", "half"), [((9, 0), BF16), ((8, 0), BF16), ((7, 5), FP16)])
def test_a_gpu_is_judged_by_its_capability(device, capability, half):
    device("cuda", capability=capability)

    assert held() == (half, FP32, half)


@pytest.mark.parametrize("kind", ["npu", "xpu"])
@pytest.mark.parametrize(("bfloat16", "half"), [(True, BF16), (False, FP16)])
def test_other_accelerators_say_themselves_what_they_have(device, kind, bfloat16, half):
    device(kind, bfloat16=bfloat16)

    assert held() == (half, FP32, half)


@pytest.mark.parametrize(("macos_14", "types"), [(True, (BF16, FP32, BF16)), (False, (FP32, FP32, None))])
def test_an_apple_gpu_has_bfloat16_from_macos_14_on(device, macos_14, types):
    device("mps", bfloat16=macos_14)

    assert held() == types


@pytest.mark.parametrize("capability", [(8, 0), (7, 0)])
def test_trained_weights_are_in_float32_and_computed_in_half(device, capability):
    device("cuda", capability=capability)

    weights, trained, autocast = held(trains_all=True)

    assert weights == trained == FP32
    assert autocast == (BF16 if capability == (8, 0) else FP16)


@pytest.mark.parametrize(("slow", "winner"), [(BF16, FP32), (FP32, BF16)])
def test_the_faster_type_wins_the_race(device, monkeypatch, slow, winner):
    device("cpu")
    monkeypatch.setattr(precision, "_time", lambda dtype: 2.0 if dtype == slow else 1.0)

    assert precision.benchmark_dtypes()[0] == held()[0] == winner
    assert held()[2] == (BF16 if winner == BF16 else None)
    assert "race" in precision.choose_precision("auto", trains_all=False).reason


@pytest.mark.parametrize(("slow", "computed"), [(BF16, None), (FP32, BF16)])
def test_a_cpu_holds_trained_weights_in_float32_whatever_wins(device, monkeypatch, slow, computed):
    device("cpu")
    monkeypatch.setattr(precision, "_time", lambda dtype: 2.0 if dtype == slow else 1.0)

    assert held(trains_all=True) == (FP32, FP32, computed)


@pytest.mark.parametrize(
    ("kind", "able", "dtype"), [("npu", True, BF16), ("npu", False, FP32), ("mps", True, BF16), ("cpu", True, FP32)]
)
def test_answers_are_made_in_sixteen_bits_on_an_accelerator_that_has_them(device, kind, able, dtype):
    device(kind, bfloat16=able)

    assert precision.inference_dtype("auto") == dtype
    assert precision.inference_dtype("float32") == FP32


def test_answers_in_bfloat16_are_refused_where_the_device_only_imitates_it(device):
    device("cuda", capability=(7, 5))

    assert precision.inference_dtype("auto") == FP32
    with pytest.raises(RecipeError, match=r"evaluate.dtype: bfloat16 .*\(7, 5\).*Set evaluate.dtype: auto"):
        precision.inference_dtype("bfloat16")


def test_answers_in_bfloat16_go_on_a_cpu_that_is_told_so(device):
    device("cpu")

    assert precision.inference_dtype("bfloat16") == BF16


def test_a_recipe_decides_where_it_says(device):
    device("cpu")

    assert held("bfloat16") == (BF16, FP32, BF16)
    assert held("bfloat16", trains_all=True) == (FP32, FP32, BF16)
    assert precision.choose_precision("bfloat16", trains_all=False).reason.startswith("as the recipe says")


def test_float16_is_refused_on_a_cpu_which_has_no_loss_scaler(device):
    device("cpu")

    with pytest.raises(RecipeError, match=r"load.dtype: float16 needs a loss scaler.*Set load.dtype"):
        precision.choose_precision("float16", trains_all=False)


@pytest.mark.parametrize("requested", ["bfloat16", "pure_bfloat16"])
def test_bfloat16_is_refused_where_the_device_only_imitates_it(device, requested):
    device("cuda", capability=(7, 5))

    with pytest.raises(RecipeError, match=rf"load.dtype: {requested} .*\(7, 5\).*Set load.dtype: auto"):
        precision.choose_precision(requested, trains_all=False)


@pytest.mark.parametrize("requested", ["float16", "auto"])
def test_a_bfloat16_model_in_float16_is_warned_of(device, caplog, requested):
    device("cuda", capability=(7, 0))

    with caplog.at_level(logging.WARNING):
        precision.choose_precision(requested, trains_all=False, model_dtype=BF16)

    assert "above 65504 overflow" in caplog.text


@pytest.mark.parametrize(("requested", "model_dtype"), [("float16", FP16), ("float16", None), ("bfloat16", BF16)])
def test_nothing_is_warned_of_where_values_fit(device, caplog, requested, model_dtype):
    device("cuda")

    precision.choose_precision(requested, trains_all=False, model_dtype=model_dtype)

    assert not caplog.records
