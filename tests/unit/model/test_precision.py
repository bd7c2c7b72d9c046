"""The type of the weights, with its reason."""

import pytest
import torch

from tuneline.model import precision


def test_a_recipe_decides_where_it_says():
    assert precision.choose("bfloat16", trains_all=False)[0] == torch.bfloat16


def test_trained_weights_stay_in_float32():
    dtype, reason = precision.choose("auto", trains_all=True)

    assert dtype == torch.float32
    assert "every weight is trained" in reason


@pytest.mark.parametrize(("slow", "winner"), [(torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16)])
def test_the_faster_type_wins_the_race(monkeypatch, slow, winner):
    monkeypatch.setattr(precision, "_time", lambda dtype: 2.0 if dtype == slow else 1.0)

    assert precision.race()[0] == winner


@pytest.mark.parametrize(("capability", "dtype"), [((8, 0), torch.bfloat16), ((7, 5), torch.float32)])
def test_a_gpu_is_judged_by_its_capability(monkeypatch, capability, dtype):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)

    assert precision.choose("auto", trains_all=False)[0] == dtype
