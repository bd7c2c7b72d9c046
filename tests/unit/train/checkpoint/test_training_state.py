"""An interrupted training resumes, and ends with bitwise the same weights as an uninterrupted one."""

import errno
import logging
import signal

import pytest

from tests.unit.train.checkpoint.trainings import (
    LORA,
    NO_SPACE,
    NO_SPACE_OF_SAFETENSORS,
    STEPS,
    DiedError,
    config,
    fail_at,
    kill,
    parts_of,
    run_training,
    weights,
)
from tuneline import storage_errors
from tuneline.config.sections.method import AdaloraMethod, FullMethod, LoraMethod
from tuneline.config.training.base import LeversConfig
from tuneline.errors import RecipeError, StoppedError, VerificationError
from tuneline.train.checkpoint import resumable_trainer, training_state
from tuneline.train.levers.apply import Levers

METHODS = {
    "full": FullMethod(type="full"),
    "pissa": LoraMethod(type="lora", r=4, lora_alpha=8, init_lora_weights="pissa"),
    "adalora": AdaloraMethod(type="adalora", init_r=4, target_r=2, tinit=2, tfinal=2),
}
OPTIONS = [
    {"gradient_accumulation_steps": 2},
    {"neftune_noise_alpha": 5.0},
    {"optim": "adamw_bnb_8bit"},
    {"optim": "adafactor", "lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr_rate": 0.1}},
]
"""Options with state that a checkpoint must contain."""


@pytest.mark.parametrize(("point", "saved"), [(2, []), (7, ["checkpoint-3", "checkpoint-6"])])
def test_a_training_killed_at_any_step_ends_with_the_same_weights(tiny_model, home, uninterrupted, point, saved):
    assert kill(tiny_model, point, "SIGKILL").returncode == -signal.SIGKILL
    assert sorted(path.name for path in home.glob("training/*/checkpoint-*")) == saved

    checkpoint, report = run_training(parts_of(tiny_model))

    assert report.decisions.get("resume") == ("resumed from step 6 of 11" if saved else None)
    assert weights(checkpoint) == uninterrupted[0]
    assert [entry["loss"] for entry in report.history] == [entry["loss"] for entry in uninterrupted[1].history]
    assert report.summary["flops"] == uninterrupted[1].summary["flops"]


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_kind_of_method_resumes_to_the_same_weights(parts, name):
    undisturbed, straight = run_training(parts, METHODS[name])
    expected = weights(undisturbed)

    with pytest.raises(DiedError):
        run_training(parts, METHODS[name], fail_at(8))
    resumed, report = run_training(parts, METHODS[name])

    assert report.decisions["resume"] == "resumed from step 6 of 11"
    assert weights(resumed) == expected
    assert [entry["step"] for entry in report.history] == list(range(1, STEPS + 1))
    assert report.summary["tokens"] == straight.summary["tokens"]


@pytest.mark.parametrize("changes", OPTIONS, ids=str)
def test_accumulation_noise_and_optimizers_resume_exactly(parts, changes):
    expected = weights(run_training(parts, **changes)[0])

    with pytest.raises(DiedError):
        run_training(parts, LORA, fail_at(8), **changes)

    assert weights(run_training(parts, **changes)[0]) == expected


def test_a_damaged_checkpoint_is_reported_and_the_previous_one_is_used(parts, home, uninterrupted, caplog):
    with pytest.raises(DiedError):
        run_training(parts, LORA, fail_at(8))
    (file,) = home.glob("training/*/checkpoint-6/trained.safetensors")
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))

    with caplog.at_level(logging.WARNING):
        checkpoint, report = run_training(parts)

    assert "Discarded checkpoint-6: trained.safetensors is missing or was modified" in caplog.text
    assert report.decisions["resume"] == "resumed from step 3 of 11"
    assert weights(checkpoint) == uninterrupted[0]


def test_damaged_checkpoints_do_not_count_towards_the_limit(parts, home):
    """A damaged checkpoint of a later step must not displace the intact one that is written next."""
    with pytest.raises(DiedError):
        run_training(parts, LORA, fail_at(8))
    (seal,) = home.glob("training/*/checkpoint-6/sha256.json")
    seal.write_text("{")

    with pytest.raises(DiedError):
        run_training(parts, LORA, fail_at(6), save_steps=0, save_seconds=1e-9, save_total_limit=1)

    assert [path.name for path in home.glob("training/*/checkpoint-*")] == ["checkpoint-5"]
    assert run_training(parts)[1].decisions["resume"] == "resumed from step 5 of 11"


def test_a_damaged_state_file_of_another_training_is_ignored(parts, home):
    other = home / "training" / "other"
    other.mkdir(parents=True)
    (other / "training.json").write_text("")

    assert "resume" not in run_training(parts)[1].decisions


def test_an_incomplete_checkpoint_is_not_used(parts, home, uninterrupted):
    with pytest.raises(DiedError):
        run_training(parts, LORA, fail_at(8))
    (folder,) = (home / "training").iterdir()
    (folder / "unfinished" / "checkpoint-9").mkdir(parents=True)
    (folder / "unfinished" / "checkpoint-9" / "trained.safetensors").write_bytes(b"half")

    checkpoint, report = run_training(parts)

    assert report.decisions["resume"] == "resumed from step 6 of 11"
    assert weights(checkpoint) == uninterrupted[0]


def test_a_finished_training_leaves_no_state(parts, home):
    run_training(parts)

    assert not list((home / "training").glob("*"))


def test_the_state_of_a_finished_training_stays_until_its_result_is_stored(parts, home, uninterrupted, caplog):
    checkpoint, report = run_training(parts, keeps_state=True)
    assert [path.name for path in home.glob("training/*/checkpoint-*")] == ["checkpoint-9"]
    assert weights(checkpoint) == uninterrupted[0]

    repeated, after = run_training(parts, keeps_state=True)
    assert after.decisions["resume"] == "resumed from step 9 of 11"
    assert weights(repeated) == uninterrupted[0]

    run_training(parts, learning_rate=2e-2)
    assert "unfinished" not in caplog.text

    training_state.delete_state(report.state)
    assert not list(home.glob("training/*"))


def test_a_training_without_checkpoints_leaves_no_state(parts, home):
    _, report = run_training(parts, keeps_state=True, save_steps=0)

    assert report.state is None
    assert not list(home.glob("training/*"))


def test_old_checkpoints_are_deleted_after_newer_ones_are_complete(parts, home):
    with pytest.raises(DiedError):
        run_training(parts, LORA, fail_at(10), save_total_limit=1)

    assert [path.name for path in home.glob("training/*/checkpoint-*")] == ["checkpoint-9"]


def test_the_steps_that_are_saved_do_not_affect_the_weights(parts, uninterrupted):
    checkpoint, _ = run_training(parts, save_steps=0)

    assert weights(checkpoint) == uninterrupted[0]
    assert checkpoint.identity["train"] == config().weight_affecting_fields()


def test_checkpoints_are_also_saved_by_time(parts, home):
    with pytest.raises(DiedError):
        run_training(parts, LORA, fail_at(5), save_steps=0, save_seconds=1e-9, save_total_limit=9)

    assert len(list(home.glob("training/*/checkpoint-*"))) == 4


def test_sigterm_saves_a_checkpoint_and_names_the_step(tiny_model, home, uninterrupted):
    stopped = kill(tiny_model, 5, "SIGTERM")

    assert f"{StoppedError.__name__}: The training was stopped by SIGTERM after step 6 of 11" in stopped.stderr
    assert [path.name for path in home.glob("training/*/checkpoint-6")] == ["checkpoint-6"]
    checkpoint, report = run_training(parts_of(tiny_model))
    assert report.decisions["resume"] == "resumed from step 6 of 11"
    assert weights(checkpoint) == uninterrupted[0]


def test_signal_handlers_are_restored_after_a_training(parts):
    before = [signal.getsignal(number) for number in resumable_trainer.STOP_SIGNALS]

    run_training(parts)

    assert [signal.getsignal(number) for number in resumable_trainer.STOP_SIGNALS] == before


def test_another_recipe_starts_a_new_training_and_the_unfinished_one_is_named(parts, caplog):
    with pytest.raises(DiedError):
        run_training(parts, LORA, fail_at(8))

    with caplog.at_level(logging.WARNING):
        _, report = run_training(parts, learning_rate=2e-2)

    assert "resume" not in report.decisions
    assert "train.learning_rate: 0.01 there, 0.02 here" in caplog.text
    assert run_training(parts)[1].decisions["resume"] == "resumed from step 6 of 11"


@pytest.mark.parametrize("error", [NO_SPACE, NO_SPACE_OF_SAFETENSORS], ids=["os", "safetensors"])
def test_a_full_disk_is_reported_and_training_continues(parts, home, uninterrupted, monkeypatch, caplog, error):
    def full(*_, **__):
        raise error

    monkeypatch.setattr(resumable_trainer, "save_file", full)
    with caplog.at_level(logging.WARNING):
        checkpoint, _ = run_training(parts)

    assert "is full, so the checkpoint of step 3 could not be written; there is none yet" in caplog.text
    assert weights(checkpoint) == uninterrupted[0]
    assert not list(home.glob("training/*/unfinished"))


def test_other_errors_while_saving_are_raised(parts, monkeypatch):
    def broken(*_, **__):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(resumable_trainer, "save_file", broken)

    with pytest.raises(OSError, match="Input/output error"):
        run_training(parts)


def test_nan_gradients_stop_the_training_before_a_checkpoint_stores_them(parts, home, monkeypatch):
    plain, calls = Levers.token_losses, []

    def steep_at_sixth(*args):
        calls.append(1)
        total, count = plain(*args)
        return (total + (0 * total).sqrt() if len(calls) == 6 else total), count

    monkeypatch.setattr(Levers, "token_losses", steep_at_sixth)

    with pytest.raises(VerificationError, match="The gradient norm is NaN at step 6"):
        run_training(parts, levers=LeversConfig(**dict.fromkeys(LeversConfig.model_fields, False)))
    assert [path.name for path in home.glob("training/*/checkpoint-*")] == ["checkpoint-3"]


def test_a_nan_loss_stops_the_training_at_once_and_names_the_step(parts, monkeypatch):
    plain, calls = Levers.token_losses, []

    def nan_at_fourth(*args):
        calls.append(1)
        total, count = plain(*args)
        return (total * float("nan") if len(calls) == 4 else total), count

    monkeypatch.setattr(Levers, "token_losses", nan_at_fourth)

    with pytest.raises(VerificationError, match="The loss is NaN at step 4"):
        run_training(parts, levers=LeversConfig(**dict.fromkeys(LeversConfig.model_fields, False)))
    assert len(calls) == 4


def test_the_same_training_cannot_run_twice_at_once(parts, home):
    def train_it_too(figures, step):
        with pytest.raises(StoppedError, match="Another process on this machine is running this training"):
            run_training(parts, max_steps=2)

    run_training(parts, listeners=(train_it_too,), max_steps=2)
    run_training(parts, max_steps=2)


def test_resume_from_resumes_its_training_and_refuses_another_recipe_with_the_differences(parts, home):
    with pytest.raises(DiedError):
        run_training(parts, LORA, fail_at(5))
    (name,) = [path.name for path in (home / "training").iterdir()]

    with pytest.raises(
        RecipeError, match="started with a different recipe: train.learning_rate: 0.01 there, 0.02 here"
    ):
        run_training(parts, LORA, resume_from=name, learning_rate=2e-2)
    with pytest.raises(RecipeError, match=f"no unfinished training 'abc' .unfinished trainings: {name}"):
        run_training(parts, LORA, resume_from="abc")
    _, report = run_training(parts, LORA, resume_from=name[:8])

    assert report.decisions["resume"] == "resumed from step 3 of 11"


def test_an_ambiguous_torch_error_is_a_full_disk_if_a_write_fails(tmp_path, monkeypatch):
    error = RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534")
    assert not storage_errors.is_full(error, tmp_path)

    def full(*_):
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(storage_errors.os, "fsync", full)

    assert storage_errors.is_full(error, tmp_path)
    assert not list(tmp_path.iterdir())
