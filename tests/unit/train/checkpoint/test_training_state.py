"""A training that is killed goes on, and ends in the weights of one that was not, bit by bit."""

import errno
import logging
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from datasets import Dataset
from safetensors import SafetensorError

from tests import tiny
from tuneline import storage_errors
from tuneline.config.sections.data import TokenizeStepConfig
from tuneline.config.sections.load import LoadStepConfig
from tuneline.config.sections.method import AdaloraMethod, FullMethod, LoraMethod
from tuneline.config.sections.model import DirectoryModel
from tuneline.config.training.base import LeversConfig, SFTConfig
from tuneline.data import schema
from tuneline.data.align import align
from tuneline.data.corpus import Corpus
from tuneline.data.tokenization import tokenize
from tuneline.errors import RecipeError, StoppedError, VerificationError
from tuneline.model import source
from tuneline.train import training_run
from tuneline.train.checkpoint import best_weights, resumable_trainer, training_state
from tuneline.train.levers.apply import Levers
from tuneline.train.trainer import StageTrainer

STEPS, EVERY = 11, 3
LORA = LoraMethod(type="lora", r=4, lora_alpha=8, lora_dropout=0.1)
METHODS = {
    "full": FullMethod(type="full"),
    "pissa": LoraMethod(type="lora", r=4, lora_alpha=8, init_lora_weights="pissa"),
    "adalora": AdaloraMethod(type="adalora", init_r=4, target_r=2, tinit=2, tfinal=2),
}
ALIKE = [
    {"gradient_accumulation_steps": 2},
    {"neftune_noise_alpha": 5.0},
    {"optim": "adamw_bnb_8bit"},
    {"optim": "adafactor", "lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr_rate": 0.1}},
]
"""What must go on too."""

IN_A_PROCESS = """
import os, signal, sys
from pathlib import Path
from tests.unit.train.checkpoint import test_training_state as here
def die(figures, step):
    if step == int(sys.argv[2]):
        os.kill(os.getpid(), getattr(signal, sys.argv[3]))
here.trained(here.parts_of(Path(sys.argv[1])), listeners=(die,))
"""


def parts_of(model: Path):
    """Packed rows, and the manifests they go with."""
    tokenizer, base_model, _ = source.resolve_model(DirectoryModel(type="directory", path=model))
    rows = [schema.example("s", align.align_record(row, "alpaca")) for row in tiny.alpaca_rows(16)]
    split = {
        "train": Dataset.from_list(rows[:12], features=schema.EXAMPLE),
        "validation": Dataset.from_list(rows[12:], features=schema.EXAMPLE),
    }
    made = tokenize.tokenize_pack(Corpus(split), tokenizer, TokenizeStepConfig(max_length=96))
    return made, base_model, tokenizer


def config(**changes):
    return SFTConfig(**{"max_steps": STEPS, "learning_rate": 1e-2, "save_steps": EVERY, **changes})


def trained(parts, method=LORA, listeners=(), *, keeps_state=False, **changes):
    load = LoadStepConfig(dtype="float32", max_length=96)
    return training_run.train(*parts, load, method, config(**changes), listeners, keeps_state=keeps_state)


def weights(checkpoint):
    return {path.name: path.read_bytes() for path in checkpoint.path.glob("*.safetensors")}


class DiedError(RuntimeError):
    """What a test raises to end a training."""


def dying_at(point):
    def die(figures, step):
        if step == point:
            raise DiedError

    return (die,)


def kill(model: Path, point: int, name: str):
    """Train in a process of its own, which sends itself a signal after a step."""
    told = [sys.executable, "-c", IN_A_PROCESS, str(model), str(point), name]
    return subprocess.run(told, capture_output=True, text=True, check=False)


@pytest.fixture
def parts(tiny_model, home):
    return parts_of(tiny_model)


@pytest.fixture(scope="module")
def whole(tiny_model, tmp_path_factory):
    """Weights and report of a training that nothing disturbed."""
    with pytest.MonkeyPatch.context() as env:
        env.setenv("TUNELINE_HOME", str(tmp_path_factory.mktemp("whole")))
        checkpoint, report = trained(parts_of(tiny_model))
        return weights(checkpoint), report


@pytest.mark.parametrize(("point", "saved"), [(2, []), (7, ["checkpoint-3", "checkpoint-6"])])
def test_kill_9_at_any_step_and_the_same_weights_at_the_end(tiny_model, home, whole, point, saved):
    assert kill(tiny_model, point, "SIGKILL").returncode == -signal.SIGKILL
    assert sorted(path.name for path in home.glob("training/*/checkpoint-*")) == saved

    checkpoint, report = trained(parts_of(tiny_model))

    assert report.decisions.get("resume") == ("went on from step 6 of 11" if saved else None)
    assert weights(checkpoint) == whole[0]
    assert [entry["loss"] for entry in report.history] == [entry["loss"] for entry in whole[1].history]
    assert report.summary["flops"] == whole[1].summary["flops"]


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_kind_of_method_goes_on_to_the_same_weights(parts, name):
    undisturbed, straight = trained(parts, METHODS[name])
    kept = weights(undisturbed)

    with pytest.raises(DiedError):
        trained(parts, METHODS[name], dying_at(8))
    resumed, report = trained(parts, METHODS[name])

    assert report.decisions["resume"] == "went on from step 6 of 11"
    assert weights(resumed) == kept
    assert [entry["step"] for entry in report.history] == list(range(1, STEPS + 1))
    assert report.summary["tokens"] == straight.summary["tokens"]


@pytest.mark.parametrize("changes", ALIKE, ids=str)
def test_accumulation_noise_and_optimizers_go_on_too(parts, changes):
    kept = weights(trained(parts, **changes)[0])

    with pytest.raises(DiedError):
        trained(parts, LORA, dying_at(8), **changes)

    assert weights(trained(parts, **changes)[0]) == kept


def test_a_damaged_checkpoint_is_told_and_the_one_before_is_taken(parts, home, whole, caplog):
    with pytest.raises(DiedError):
        trained(parts, LORA, dying_at(8))
    (file,) = home.glob("training/*/checkpoint-6/trained.safetensors")
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))

    with caplog.at_level(logging.WARNING):
        checkpoint, report = trained(parts)

    assert "trained.safetensors of checkpoint-6 is not as it was written" in caplog.text
    assert report.decisions["resume"] == "went on from step 3 of 11"
    assert weights(checkpoint) == whole[0]


def test_damaged_checkpoints_do_not_count_among_those_that_are_kept(parts, home):
    """A damaged one of a later step must not push out the whole one that is written next."""
    with pytest.raises(DiedError):
        trained(parts, LORA, dying_at(8))
    (seal,) = home.glob("training/*/checkpoint-6/sha256.json")
    seal.write_text("{")

    with pytest.raises(DiedError):
        trained(parts, LORA, dying_at(6), save_steps=0, save_seconds=1e-9, save_total_limit=1)

    assert [path.name for path in home.glob("training/*/checkpoint-*")] == ["checkpoint-5"]
    assert trained(parts)[1].decisions["resume"] == "went on from step 5 of 11"


def test_a_damaged_note_of_another_training_stops_none(parts, home):
    other = home / "training" / "other"
    other.mkdir(parents=True)
    (other / "training.json").write_text("")

    assert "resume" not in trained(parts)[1].decisions


def test_what_was_being_written_when_a_process_died_is_not_taken(parts, home, whole):
    with pytest.raises(DiedError):
        trained(parts, LORA, dying_at(8))
    (folder,) = (home / "training").iterdir()
    (folder / "unfinished" / "checkpoint-9").mkdir(parents=True)
    (folder / "unfinished" / "checkpoint-9" / "trained.safetensors").write_bytes(b"half")

    checkpoint, report = trained(parts)

    assert report.decisions["resume"] == "went on from step 6 of 11"
    assert weights(checkpoint) == whole[0]


def test_a_finished_training_leaves_no_state(parts, home):
    trained(parts)

    assert not list((home / "training").glob("*"))


def test_a_finished_training_stays_until_its_result_is_stored(parts, home, whole, caplog):
    checkpoint, report = trained(parts, keeps_state=True)
    assert [path.name for path in home.glob("training/*/checkpoint-*")] == ["checkpoint-9"]
    assert weights(checkpoint) == whole[0]

    again, after = trained(parts, keeps_state=True)
    assert after.decisions["resume"] == "went on from step 9 of 11"
    assert weights(again) == whole[0]

    trained(parts, learning_rate=2e-2)
    assert "unfinished" not in caplog.text

    training_state.delete_state(report.state)
    assert not list(home.glob("training/*"))


def test_a_training_without_checkpoints_leaves_no_state(parts, home):
    _, report = trained(parts, keeps_state=True, save_steps=0)

    assert report.state is None
    assert not list(home.glob("training/*"))


def test_old_checkpoints_go_once_newer_ones_are_whole(parts, home):
    with pytest.raises(DiedError):
        trained(parts, LORA, dying_at(10), save_total_limit=1)

    assert [path.name for path in home.glob("training/*/checkpoint-*")] == ["checkpoint-9"]


def test_where_it_is_saved_does_not_change_what_is_trained(parts, whole):
    checkpoint, _ = trained(parts, save_steps=0)

    assert weights(checkpoint) == whole[0]
    assert checkpoint.identity["train"] == config().weight_affecting_fields()


def test_time_alone_saves_too(parts, home):
    with pytest.raises(DiedError):
        trained(parts, LORA, dying_at(5), save_steps=0, save_seconds=1e-9, save_total_limit=9)

    assert len(list(home.glob("training/*/checkpoint-*"))) == 4


def test_sigterm_saves_and_says_how_to_go_on(tiny_model, home, whole):
    stopped = kill(tiny_model, 5, "SIGTERM")

    assert f"{StoppedError.__name__}: The training was stopped by SIGTERM after step 6 of 11" in stopped.stderr
    assert [path.name for path in home.glob("training/*/checkpoint-6")] == ["checkpoint-6"]
    checkpoint, report = trained(parts_of(tiny_model))
    assert report.decisions["resume"] == "went on from step 6 of 11"
    assert weights(checkpoint) == whole[0]


def test_handlers_are_as_before_after_a_training(parts):
    before = [signal.getsignal(number) for number in resumable_trainer.STOP_SIGNALS]

    trained(parts)

    assert [signal.getsignal(number) for number in resumable_trainer.STOP_SIGNALS] == before


def test_another_recipe_is_a_new_run_and_the_unfinished_one_is_named(parts, caplog):
    with pytest.raises(DiedError):
        trained(parts, LORA, dying_at(8))

    with caplog.at_level(logging.WARNING):
        _, report = trained(parts, learning_rate=2e-2)

    assert "resume" not in report.decisions
    assert "train.learning_rate: 0.01 there, 0.02 here" in caplog.text
    assert trained(parts)[1].decisions["resume"] == "went on from step 6 of 11"


NO_SPACE = OSError(errno.ENOSPC, "No space left on device")
NO_SPACE_OF_SAFETENSORS = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


@pytest.mark.parametrize("error", [NO_SPACE, NO_SPACE_OF_SAFETENSORS], ids=["os", "safetensors"])
def test_a_full_disk_is_told_and_training_goes_on(parts, home, whole, monkeypatch, caplog, error):
    def full(*_, **__):
        raise error

    monkeypatch.setattr(resumable_trainer, "save_file", full)
    with caplog.at_level(logging.WARNING):
        checkpoint, _ = trained(parts)

    assert "is full, so the checkpoint of step 3 could not be written; there is none yet" in caplog.text
    assert weights(checkpoint) == whole[0]
    assert not list(home.glob("training/*/unfinished"))


def test_another_fault_while_saving_is_raised(parts, monkeypatch):
    def broken(*_, **__):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(resumable_trainer, "save_file", broken)

    with pytest.raises(OSError, match="Input/output error"):
        trained(parts)


def test_gradients_that_are_no_number_stop_before_a_checkpoint_keeps_them(parts, home, monkeypatch):
    plain, calls = Levers.token_losses, []

    def steep_at_sixth(*given):
        calls.append(1)
        total, count = plain(*given)
        return (total + (0 * total).sqrt() if len(calls) == 6 else total), count

    monkeypatch.setattr(Levers, "token_losses", steep_at_sixth)

    with pytest.raises(VerificationError, match="The norm of the gradients became NaN in step 6"):
        trained(parts, levers=LeversConfig(**dict.fromkeys(LeversConfig.model_fields, False)))
    assert [path.name for path in home.glob("training/*/checkpoint-*")] == ["checkpoint-3"]


def test_a_loss_that_is_no_number_stops_at_once_and_says_the_step(parts, monkeypatch):
    plain, calls = Levers.token_losses, []

    def nan_at_fourth(*given):
        calls.append(1)
        total, count = plain(*given)
        return (total * float("nan") if len(calls) == 4 else total), count

    monkeypatch.setattr(Levers, "token_losses", nan_at_fourth)

    with pytest.raises(VerificationError, match="The loss became NaN in step 4"):
        trained(parts, levers=LeversConfig(**dict.fromkeys(LeversConfig.model_fields, False)))
    assert len(calls) == 4


def test_two_processes_never_train_the_same_at_once(parts, home):
    def train_it_too(figures, step):
        with pytest.raises(StoppedError, match="Another process on this machine trains this recipe"):
            trained(parts, max_steps=2)

    trained(parts, listeners=(train_it_too,), max_steps=2)
    trained(parts, max_steps=2)


def test_an_explicit_training_goes_on_and_another_recipes_is_refused_with_what_differs(parts, home):
    with pytest.raises(DiedError):
        trained(parts, LORA, dying_at(5))
    (name,) = [path.name for path in (home / "training").iterdir()]

    with pytest.raises(RecipeError, match="begun with another recipe: train.learning_rate: 0.01 there, 0.02 here"):
        trained(parts, LORA, resume_from=name, learning_rate=2e-2)
    with pytest.raises(RecipeError, match=f"no unfinished training 'abc' .there are: {name}"):
        trained(parts, LORA, resume_from="abc")
    _, report = trained(parts, LORA, resume_from=name[:8])

    assert report.decisions["resume"] == "went on from step 3 of 11"


# -- the weights of the best evaluation

BEST = {"eval_steps": 2, "load_best_model_at_end": True}


def judged(monkeypatch, losses):
    """Have evaluations find these losses at these steps; the last one is of the end."""

    def validate(loop):
        return {"loss": losses.get(loop.state.global_step, 9.0)}

    monkeypatch.setattr(StageTrainer, "validate", validate)


def test_a_kill_between_two_evaluations_leaves_the_weights_of_the_evaluation_that_is_recorded(parts, monkeypatch):
    """Step 4 was best before the kill, and is not when it is computed again: step 2 is, by the checkpoint of step 3."""
    judged(monkeypatch, {2: 1.0})
    of_step_2 = weights(trained(parts, **BEST)[0])
    judged(monkeypatch, {2: 1.0, 4: 0.5})
    with pytest.raises(DiedError):
        trained(parts, LORA, dying_at(5), **BEST)

    judged(monkeypatch, {2: 1.0, 4: 2.0})
    checkpoint, report = trained(parts, **BEST)

    assert report.decisions["resume"] == "went on from step 3 of 11"
    assert report.decisions["best"].startswith("weights of step 2, ")
    assert weights(checkpoint) == of_step_2


def test_the_best_weights_are_in_each_checkpoint_under_its_hashes(parts, home, monkeypatch, caplog):
    judged(monkeypatch, {2: 1.0, 4: 0.5})
    with pytest.raises(DiedError):
        trained(parts, LORA, dying_at(8), **BEST)
    files = sorted(str(path.relative_to(path.parents[1])) for path in home.glob("training/*/*/best-*"))
    assert files == ["checkpoint-3/best-2.safetensors", "checkpoint-6/best-4.safetensors"]
    assert [path.name for path in home.glob("training/*/best*")] == ["best-4.safetensors"]
    (file,) = home.glob("training/*/checkpoint-6/best-4.safetensors")
    file.write_bytes(file.read_bytes()[:-1])

    _, report = trained(parts, **BEST)

    assert "best-4.safetensors of checkpoint-6 is not as it was written" in caplog.text
    assert report.decisions["resume"] == "went on from step 3 of 11"
    assert report.decisions["best"].startswith("weights of step 4, ")


@pytest.mark.parametrize("error", [NO_SPACE, NO_SPACE_OF_SAFETENSORS], ids=["os", "safetensors"])
def test_a_full_disk_while_the_best_weights_are_kept_ends_no_training(parts, whole, monkeypatch, caplog, error):
    def full(tensors, path):
        path.write_bytes(b"half")
        raise error

    judged(monkeypatch, {2: 1.0, 4: 0.5})
    monkeypatch.setattr(best_weights, "save_file", full)

    checkpoint, report = trained(parts, **BEST)

    assert weights(checkpoint) == whole[0]
    assert report.decisions["best"] == "weights of step 11, the last: those of step 4, the best, could not be kept"
    assert caplog.text.count("is full, so the weights of step") == 1


def test_weights_that_were_kept_again_after_a_full_disk_are_put_back(parts, home, monkeypatch):
    judged(monkeypatch, {4: 0.5})
    of_step_4 = weights(trained(parts, **BEST)[0])
    plain, calls = best_weights.save_file, []

    def full_once(tensors, path):
        calls.append(path)
        if len(calls) == 1:
            raise NO_SPACE
        plain(tensors, path)

    judged(monkeypatch, {2: 1.0, 4: 0.5})
    monkeypatch.setattr(best_weights, "save_file", full_once)

    assert weights(trained(parts, **BEST)[0]) == of_step_4


def test_another_fault_while_the_best_weights_are_kept_is_raised(parts, monkeypatch):
    def broken(*_, **__):
        raise SafetensorError("I/O error: Input/output error (os error 5)")

    monkeypatch.setattr(best_weights, "save_file", broken)

    with pytest.raises(SafetensorError, match="Input/output error"):
        trained(parts, **BEST)


def test_best_weights_that_were_changed_are_not_put_back(parts, home, monkeypatch):
    def damage(figures, step):
        if step == 10:
            (file,) = home.glob("training/*/best-*")
            file.unlink()
            file.write_bytes(b"other")

    judged(monkeypatch, {2: 1.0})

    with pytest.raises(
        VerificationError, match=r"best-2.safetensors with the weights of step 2 is missing or not as it was"
    ):
        trained(parts, LORA, (damage,), **BEST)


def test_torch_does_not_say_that_a_disk_is_full_so_a_write_is_tried(tmp_path, monkeypatch):
    error = RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534")
    assert not storage_errors.is_full(error, tmp_path)

    def full(*_):
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(storage_errors.os, "fsync", full)

    assert storage_errors.is_full(error, tmp_path)
    assert not list(tmp_path.iterdir())
