"""Stored artifacts that were damaged or deleted are refused before anything is computed from them."""

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
    """Return the folder of what a step of the newest run made; what a test does to it is undone."""
    from zenml.client import Client

    saved = []

    def find(step):
        found = Client().get_pipeline_run(first.run_name).steps[step]
        (artifact,) = next(each for name, each in found.outputs.items() if "report" not in name or step == "evaluate")
        folder = Path(artifact.uri)
        copy = folder.with_name(f"{folder.name}.saved")
        shutil.copytree(folder, copy)
        saved.append((copy, folder))
        return folder

    yield find
    for copy, folder in saved:
        shutil.rmtree(folder, ignore_errors=True)
        copy.rename(folder)


def flip(path):
    """Flip one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def refusal(run, **changes):
    with pytest.raises(RunError) as caught:
        run(**changes)
    return str(caught.value)


OTHER = {"train": {**tiny.recipe()["train"], "learning_rate": 3e-3}}


def test_a_flipped_bit_of_a_cached_model_is_refused_and_nothing_is_registered(run, output):
    weights = output("merge_adapter") / "files" / "model.safetensors"
    tracker.connect()
    before = [version.version for version in registry.list_versions("tiny")]

    flip(weights)

    told = refusal(run)
    assert f"{weights} has the sha256 " in told
    assert "as it was stored" in told
    assert told.endswith("or compute it again: `tuneline run RECIPE --recompute merge_adapter`.")
    tracker.connect()
    assert [version.version for version in registry.list_versions("tiny")] == before


def test_overwritten_token_ids_are_not_trained(run, output):
    rows = output("tokenize_pack") / "train.arrow"
    content = bytearray(rows.read_bytes())
    content[-400:-360] = bytes(40)
    rows.write_bytes(content)

    assert f"{rows} has the sha256 " in refusal(run, **OTHER)


@pytest.mark.parametrize("step", ["align_first", "merge", "train", "evaluate"])
def test_a_deleted_output_of_a_cached_step_is_told_with_the_way_out(run, output, step):
    folder = output(step)
    shutil.rmtree(folder)

    told = refusal(run)

    assert told == (
        f"{folder} is missing. It is an output of step {step}. Restore it from a backup, or compute it again: "
        f"`tuneline run RECIPE --recompute {step}`."
    )


def test_a_deleted_output_that_is_read_last_is_told_before_a_training(run, output):
    shutil.rmtree(output("merge"))

    assert "output of step merge." in refusal(run, **OTHER)


def test_a_step_that_is_computed_again_heals_the_cache(project, run, output, ran):
    folder = output("tokenize_pack")
    shutil.rmtree(folder)

    path = tiny.write_config(project / "changed.yaml", tiny.recipe())
    made = sft_pipeline.with_options(config_path=str(path), steps={"tokenize_pack": {"enable_cache": False}})
    assert ran(read_training_outcome(made())) == {"tokenize_pack"}
    assert ran(run()) == set()


def full(*_):
    raise OSError(errno.ENOSPC, "No space left on device", "/data/rows.arrow")


def full_in_the_words_of_arrow(*_):
    raise OSError("Error writing bytes to file. Detail: [errno 28] No space left on device")


@pytest.mark.parametrize("fail", [full, full_in_the_words_of_arrow])
def test_a_full_disk_in_a_step_is_told_as_one_and_without_a_traceback(run, first, monkeypatch, capfd, fail):
    monkeypatch.setattr("tuneline.data.tokenization.tokenize.tokenize_pack", fail)

    told = refusal(run, tokenize={"max_length": 128})

    assert told.startswith("A disk is full")
    assert "GB at " in told
    assert "Traceback" not in capfd.readouterr().err
