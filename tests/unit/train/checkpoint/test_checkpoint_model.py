"""A checkpoint of a running training becomes a model."""

import shutil

import pytest
import torch
from safetensors.torch import load_file

from tests.unit.train.checkpoint.trainings import LORA, DiedError, dying_at, parts_of, trained
from tuneline import state
from tuneline.config.sections.method import FullMethod
from tuneline.errors import SourceError
from tuneline.model.load import load_model
from tuneline.train.checkpoint import checkpoint_model, training_state


def interrupted(parts, method=LORA):
    """Train until a checkpoint of step 6 exists; return its folder."""
    with pytest.raises(DiedError):
        trained(parts, method, dying_at(8), save_total_limit=2)
    (folder,) = (state.root() / "training").iterdir()
    return max(folder.glob("checkpoint-*"), key=training_state.checkpoint_step)


def test_the_model_of_a_checkpoint_has_its_trained_weights(parts, home, tmp_path):
    checkpoint = interrupted(parts)

    built = checkpoint_model.build_model(checkpoint, tmp_path / "built")

    assert (built.training, built.step) == (checkpoint.parent.name, 6)
    assert built.adapter.is_dir()
    model = load_model(built.folder)
    parameters = dict(model.named_parameters())
    weights = load_file(checkpoint / "trained.safetensors")
    assert weights
    assert all(torch.equal(parameters[name], weight) for name, weight in weights.items())
    assert (built.folder / "tokenizer.json").is_file()


def test_a_checkpoint_of_full_training_becomes_a_whole_model(parts, home, tmp_path):
    checkpoint = interrupted(parts, FullMethod(type="full"))

    built = checkpoint_model.build_model(checkpoint.parent, tmp_path / "built")

    assert built.adapter is None
    weights = load_file(checkpoint / "trained.safetensors")
    parameters = dict(load_model(built.folder).named_parameters())
    assert all(torch.equal(parameters[name], weight) for name, weight in weights.items())


def test_a_checkpoint_that_the_trainer_deletes_is_replaced_by_the_next_one(parts, home, tmp_path, monkeypatch):
    checkpoint = interrupted(parts)
    older = checkpoint.parent / "checkpoint-99"
    older.mkdir()
    select = checkpoint_model._select

    def select_and_delete(folder):
        source = select(folder)
        if source == older:
            shutil.rmtree(older)
        return source

    monkeypatch.setattr(checkpoint_model, "_select", select_and_delete)

    assert checkpoint_model.build_model(checkpoint.parent, tmp_path / "built").step == 6


def test_a_deleted_checkpoint_does_not_affect_the_model(parts, home, tmp_path):
    checkpoint = interrupted(parts)
    built = checkpoint_model.build_model(checkpoint, tmp_path / "built")

    shutil.rmtree(checkpoint.parent)

    assert load_model(built.folder)


@pytest.mark.parametrize("damage", ["weights", "base", "record", "none"])
def test_a_checkpoint_without_its_inputs_is_refused(parts, home, tmp_path, damage, tiny_model):
    checkpoint = interrupted(parts)
    base = None
    if damage == "weights":
        (checkpoint / "trained.safetensors").write_bytes(b"changed")
    elif damage == "base":
        from tests import tiny

        base = parts_of(tiny.build_model(tmp_path / "other", seed=1))[1:]
        base = base[1], base[0]
    elif damage == "record":
        (checkpoint.parent / "training.json").write_text("{}")
    else:
        shutil.rmtree(checkpoint)
        for path in checkpoint.parent.glob("checkpoint-*"):
            shutil.rmtree(path)
    message = {
        "weights": "trained.safetensors was modified",
        "base": "trained on another base model",
        "record": "--base",
        "none": "no checkpoint",
    }

    with pytest.raises(SourceError, match=message[damage]) as caught:
        checkpoint_model.build_model(checkpoint.parent, tmp_path / "built", base)
    assert "\n" not in str(caught.value)
