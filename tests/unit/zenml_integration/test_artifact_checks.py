"""Outputs of cached steps are looked at, on this machine and elsewhere, and errors of ours leave no traceback."""

import inspect
import logging
from pathlib import Path
from types import SimpleNamespace

import pytest

from tuneline import checksums
from tuneline.errors import ArtifactError, DataError
from tuneline.zenml_integration import artifact_checks, log_filter

pytestmark = pytest.mark.usefixtures("home")


class RemoteStore:
    """A store that is read through its methods alone."""

    config = SimpleNamespace(is_local=False)
    exists = staticmethod(lambda path: Path(path).exists())
    open = staticmethod(open)
    size = staticmethod(lambda path: Path(path).stat().st_size)


LOCAL = SimpleNamespace(config=SimpleNamespace(is_local=True))


@pytest.fixture
def artifact(tmp_path):
    """An artifact as ZenML knows it."""
    folder = tmp_path / "artifact"
    folder.mkdir()
    (folder / "rows.arrow").write_bytes(bytes(100))
    checksums.write(folder, "content", "merge")
    return SimpleNamespace(uri=str(folder), content_hash="content")


@pytest.fixture(params=[LOCAL, RemoteStore()], ids=["local", "remote"])
def look(request, monkeypatch, artifact):
    """Look at the outputs of a step as if the cache had found it."""
    client = SimpleNamespace(active_stack=SimpleNamespace(artifact_store=request.param))
    monkeypatch.setattr(artifact_checks, "Client", lambda: client)
    step = SimpleNamespace(name="merge", outputs={"mixture": [artifact]})
    return lambda: artifact_checks.check_outputs(step)


def test_intact_outputs_are_compared_with_their_hash(look, monkeypatch):
    compared = []
    monkeypatch.setattr(artifact_checks, "compare_hashes", lambda *hashes: compared.append(hashes[1:]))

    look()

    assert compared == [("content", "content")]


def test_a_missing_file_is_told(look, artifact):
    (Path(artifact.uri) / "rows.arrow").unlink()

    with pytest.raises(ArtifactError, match=r"rows.arrow is missing. It is an output of .*--recompute merge"):
        look()


def test_a_missing_artifact_is_told(look, artifact):
    Path(artifact.uri).rename(f"{artifact.uri}.elsewhere")

    with pytest.raises(ArtifactError, match=rf"{artifact.uri} is missing."):
        look()


def test_a_file_that_was_cut_off_is_told(look, artifact):
    (Path(artifact.uri) / "rows.arrow").write_bytes(bytes(60))

    with pytest.raises(ArtifactError, match=r"rows.arrow has .*60 bytes.*, expected .*100"):
        look()


def test_an_artifact_that_took_the_place_of_another_is_told(look, artifact):
    artifact.content_hash = "other"

    with pytest.raises(ArtifactError, match=r"has the content hash content, expected other as ZenML recorded it"):
        look()


def test_zenml_looks_its_cached_steps_up_through_the_function_that_is_wrapped():
    from zenml.orchestrators import cache_utils, step_run_utils

    usual = cache_utils.get_cached_step_run

    assert "cache_utils.get_cached_step_run(" in inspect.getsource(step_run_utils)
    with artifact_checks.verify_cached_steps():
        assert cache_utils.get_cached_step_run is not usual
    assert cache_utils.get_cached_step_run is usual


@pytest.mark.parametrize(
    ("error", "shown"), [(DataError("x.jsonl:1: no."), False), (OSError(28, "full"), False), (KeyError("x"), True)]
)
def test_zenml_logs_a_traceback_of_what_is_not_told_in_one_line(caplog, monkeypatch, error, shown):
    logger = logging.getLogger(log_filter.LOGGERS[0])
    monkeypatch.setattr(logger, "handlers", [caplog.handler])  # once ZenML has started, nothing reaches the root logger
    caplog.set_level(logging.ERROR, logger=logger.name)
    with log_filter.without_tracebacks():
        try:
            raise error
        except Exception:
            logger.exception("Step failed.")

    assert "Step failed." in caplog.text
    assert ("Traceback" in caplog.text) == shown
