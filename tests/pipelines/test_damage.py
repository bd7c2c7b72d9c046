"""Damaged or deleted artifacts are errors before anything is computed from them."""

import errno
import shutil
from pathlib import Path

import pytest

from pipelines import sft_pipeline
from tests import tiny
from tuneline.runner.start import read_training_outcome
from tuneline.tracking import registry
from tuneline.zenml_integration import tracker
from tuneline.zenml_integration.strict_pipeline import RunError

pytestmark = [pytest.mark.zenml, pytest.mark.slow]


@pytest.fixture(scope="module")
def first(run):
    return run()


@pytest.fixture
def output(first):
    """Return a function that finds a step's output folder in the first run; it is restored after the test."""
    from zenml.client import Client

    saved = []

    def find(step):
        outputs = Client().get_pipeline_run(first.run_name).steps[step].outputs
        (artifact,) = next(
            artifacts for name, artifacts in outputs.items() if "report" not in name or step == "evaluate"
        )
        folder = Path(artifact.uri)
        copy = folder.with_name(f"{folder.name}.saved")
        shutil.copytree(folder, copy)
        saved.append((copy, folder))
        return folder

    yield find
    for copy, folder in saved:
        shutil.rmtree(folder, ignore_errors=True)
        copy.rename(folder)


def flip_bit(path):
    """Flip one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def error_of(run, **changes):
    with pytest.raises(RunError) as error_info:
        run(**changes)
    return str(error_info.value)


OTHER_LEARNING_RATE = {"train": {**tiny.recipe()["train"], "learning_rate": 3e-3}}


def test_a_flipped_bit_in_a_cached_model_is_an_error_and_nothing_is_registered(run, output):
    weights = output("merge_adapter") / "files" / "model.safetensors"
    tracker.connect()
    before = [version.version for version in registry.list_versions("tiny")]

    flip_bit(weights)

    message = error_of(run)
    assert f"{weights} has the sha256 " in message
    assert "as it was stored" in message
    assert message.endswith("or compute it again: `tuneline run RECIPE --recompute merge_adapter`.")
    tracker.connect()
    assert [version.version for version in registry.list_versions("tiny")] == before


def test_overwritten_token_ids_are_not_trained(run, output):
    rows = output("tokenize_pack") / "train.arrow"
    content = bytearray(rows.read_bytes())
    content[-400:-360] = bytes(40)
    rows.write_bytes(content)

    assert f"{rows} has the sha256 " in error_of(run, **OTHER_LEARNING_RATE)


@pytest.mark.parametrize("step", ["align_first", "merge", "train", "evaluate"])
def test_a_deleted_output_of_a_cached_step_is_an_error_with_the_command_that_recomputes_it(run, output, step):
    folder = output(step)
    shutil.rmtree(folder)

    message = error_of(run)

    assert message == (
        f"{folder} is missing. It is an output of step {step}. Restore it from a backup, or compute it again: "
        f"`tuneline run RECIPE --recompute {step}`."
    )


def test_a_deleted_output_is_an_error_before_training_even_if_later_steps_read_it(run, output):
    shutil.rmtree(output("merge"))

    assert "output of step merge." in error_of(run, **OTHER_LEARNING_RATE)


def test_recomputing_a_step_repairs_the_cache(project, run, output, executed_steps):
    folder = output("tokenize_pack")
    shutil.rmtree(folder)

    path = tiny.write_config(project / "changed.yaml", tiny.recipe())
    pipeline = sft_pipeline.with_options(config_path=str(path), steps={"tokenize_pack": {"enable_cache": False}})
    assert executed_steps(read_training_outcome(pipeline())) == {"tokenize_pack"}
    assert executed_steps(run()) == set()


def raise_disk_full(*_):
    raise OSError(errno.ENOSPC, "No space left on device", "/data/rows.arrow")


def raise_disk_full_of_arrow(*_):
    raise OSError("Error writing bytes to file. Detail: [errno 28] No space left on device")


@pytest.mark.parametrize("fail", [raise_disk_full, raise_disk_full_of_arrow])
def test_a_full_disk_in_a_step_is_one_error_without_a_traceback(run, first, monkeypatch, capfd, fail):
    monkeypatch.setattr("tuneline.data.tokenization.tokenize.tokenize_pack", fail)

    message = error_of(run, tokenize={"max_length": 128})

    assert message.startswith("A disk is full")
    assert "GB at " in message
    assert "Traceback" not in capfd.readouterr().err
