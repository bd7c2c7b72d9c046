"""The weights of the best evaluation: stored in checkpoints, verified, and restored at the end."""

import pytest
from safetensors import SafetensorError

from tests.unit.train.checkpoint.trainings import (
    LORA,
    NO_SPACE,
    NO_SPACE_OF_SAFETENSORS,
    DiedError,
    fail_at,
    run_training,
    weights,
)
from tuneline.errors import VerificationError
from tuneline.train.checkpoint import best_weights
from tuneline.train.trainer import StageTrainer

BEST = {"eval_steps": 2, "load_best_model_at_end": True}


def fake_losses(monkeypatch, losses):
    """Let evaluations return these losses at these steps, and 9 at all others."""

    def validate(loop):
        return {"loss": losses.get(loop.state.global_step, 9.0)}

    monkeypatch.setattr(StageTrainer, "validate", validate)


def test_a_kill_between_evaluations_keeps_the_weights_of_the_recorded_evaluation(parts, monkeypatch):
    """Step 4 was best before the kill, and is not when it is computed again: step 2 is, by the checkpoint of step 3."""
    fake_losses(monkeypatch, {2: 1.0})
    of_step_2 = weights(run_training(parts, **BEST)[0])
    fake_losses(monkeypatch, {2: 1.0, 4: 0.5})
    with pytest.raises(DiedError):
        run_training(parts, LORA, fail_at(5), **BEST)

    fake_losses(monkeypatch, {2: 1.0, 4: 2.0})
    checkpoint, report = run_training(parts, **BEST)

    assert report.decisions["resume"] == "resumed from step 3 of 11"
    assert report.decisions["best"].startswith("weights of step 2, ")
    assert weights(checkpoint) == of_step_2


def test_each_checkpoint_contains_the_best_weights_and_their_hash(parts, home, monkeypatch, caplog):
    fake_losses(monkeypatch, {2: 1.0, 4: 0.5})
    with pytest.raises(DiedError):
        run_training(parts, LORA, fail_at(8), **BEST)
    files = sorted(str(path.relative_to(path.parents[1])) for path in home.glob("training/*/*/best-*"))
    assert files == ["checkpoint-3/best-2.safetensors", "checkpoint-6/best-4.safetensors"]
    assert [path.name for path in home.glob("training/*/best*")] == ["best-4.safetensors"]
    (file,) = home.glob("training/*/checkpoint-6/best-4.safetensors")
    file.write_bytes(file.read_bytes()[:-1])

    _, report = run_training(parts, **BEST)

    assert "Discarded checkpoint-6: best-4.safetensors is missing or was modified" in caplog.text
    assert report.decisions["resume"] == "resumed from step 3 of 11"
    assert report.decisions["best"].startswith("weights of step 4, ")


@pytest.mark.parametrize("error", [NO_SPACE, NO_SPACE_OF_SAFETENSORS], ids=["os", "safetensors"])
def test_a_full_disk_while_saving_the_best_weights_does_not_end_the_training(
    parts, uninterrupted, monkeypatch, caplog, error
):
    def full(tensors, path):
        path.write_bytes(b"half")
        raise error

    fake_losses(monkeypatch, {2: 1.0, 4: 0.5})
    monkeypatch.setattr(best_weights, "save_file", full)

    checkpoint, report = run_training(parts, **BEST)

    assert weights(checkpoint) == uninterrupted[0]
    assert report.decisions["best"] == "weights of step 11, the last: those of step 4, the best, could not be saved"
    assert caplog.text.count("is full, so the weights of step") == 1


def test_best_weights_saved_after_a_full_disk_are_restored(parts, home, monkeypatch):
    fake_losses(monkeypatch, {4: 0.5})
    of_step_4 = weights(run_training(parts, **BEST)[0])
    plain, calls = best_weights.save_file, []

    def full_once(tensors, path):
        calls.append(path)
        if len(calls) == 1:
            raise NO_SPACE
        plain(tensors, path)

    fake_losses(monkeypatch, {2: 1.0, 4: 0.5})
    monkeypatch.setattr(best_weights, "save_file", full_once)

    assert weights(run_training(parts, **BEST)[0]) == of_step_4


def test_other_errors_while_saving_the_best_weights_are_raised(parts, monkeypatch):
    def broken(*_, **__):
        raise SafetensorError("I/O error: Input/output error (os error 5)")

    monkeypatch.setattr(best_weights, "save_file", broken)

    with pytest.raises(SafetensorError, match="Input/output error"):
        run_training(parts, **BEST)


def test_modified_best_weights_are_not_restored(parts, home, monkeypatch):
    def damage(figures, step):
        if step == 10:
            (file,) = home.glob("training/*/best-*")
            file.unlink()
            file.write_bytes(b"other")

    fake_losses(monkeypatch, {2: 1.0})

    with pytest.raises(
        VerificationError, match=r"best-2.safetensors with the weights of step 2 is missing or was modified"
    ):
        run_training(parts, LORA, (damage,), **BEST)
