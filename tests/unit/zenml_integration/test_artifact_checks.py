"""Outputs of cached steps are checked in local and remote stores; errors of Tuneline log no traceback."""

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
    """A store that is only accessible through its methods."""

    config = SimpleNamespace(is_local=False)
    exists = staticmethod(lambda path: Path(path).exists())
    open = staticmethod(open)
    size = staticmethod(lambda path: Path(path).stat().st_size)


LOCAL = SimpleNamespace(config=SimpleNamespace(is_local=True))


@pytest.fixture
def artifact(tmp_path):
    """An artifact as ZenML records it."""
    folder = tmp_path / "artifact"
    folder.mkdir()
    (folder / "rows.arrow").write_bytes(bytes(100))
    checksums.write(folder, "content", "merge")
    return SimpleNamespace(uri=str(folder), content_hash="content")


@pytest.fixture(params=[LOCAL, RemoteStore()], ids=["local", "remote"])
def check(request, monkeypatch, artifact):
    """Return a function that checks the outputs of a cached step."""
    client = SimpleNamespace(active_stack=SimpleNamespace(artifact_store=request.param))
    monkeypatch.setattr(artifact_checks, "Client", lambda: client)
    step = SimpleNamespace(name="merge", outputs={"mixture": [artifact]})
    return lambda: artifact_checks.check_outputs(step)


def test_intact_outputs_are_compared_with_their_hash(check, monkeypatch):
    compared = []
    monkeypatch.setattr(artifact_checks, "compare_hashes", lambda *hashes: compared.append(hashes[1:]))

    check()

    assert compared == [("content", "content")]


def test_a_missing_file_is_reported(check, artifact):
    (Path(artifact.uri) / "rows.arrow").unlink()

    with pytest.raises(ArtifactError, match=r"rows.arrow is missing. It is an output of .*--recompute merge"):
        check()


def test_a_missing_artifact_is_reported(check, artifact):
    Path(artifact.uri).rename(f"{artifact.uri}.elsewhere")

    with pytest.raises(ArtifactError, match=rf"{artifact.uri} is missing."):
        check()


def test_a_truncated_file_is_reported(check, artifact):
    (Path(artifact.uri) / "rows.arrow").write_bytes(bytes(60))

    with pytest.raises(ArtifactError, match=r"rows.arrow has .*60 bytes.*, expected .*100"):
        check()


def test_an_artifact_with_another_content_hash_is_reported(check, artifact):
    artifact.content_hash = "other"

    with pytest.raises(ArtifactError, match=r"has the content hash content, expected other as ZenML recorded it"):
        check()


def test_zenml_finds_cached_steps_by_the_wrapped_function():
    from zenml.orchestrators import cache_utils, step_run_utils

    original = cache_utils.get_cached_step_run

    assert "cache_utils.get_cached_step_run(" in inspect.getsource(step_run_utils)
    with artifact_checks.verify_cached_steps():
        assert cache_utils.get_cached_step_run is not original
    assert cache_utils.get_cached_step_run is original


@pytest.mark.parametrize(
    ("error", "has_traceback"),
    [(DataError("x.jsonl:1: no."), False), (OSError(28, "full"), False), (KeyError("x"), True)],
)
def test_zenml_logs_tracebacks_of_other_errors_only(caplog, monkeypatch, error, has_traceback):
    logger = logging.getLogger(log_filter.LOGGERS[0])
    monkeypatch.setattr(
        logger, "handlers", [caplog.handler]
    )  # after ZenML has started, records do not reach the root logger
    caplog.set_level(logging.ERROR, logger=logger.name)
    with log_filter.without_tracebacks():
        try:
            raise error
        except Exception:
            logger.exception("Step failed.")

    assert "Step failed." in caplog.text
    assert ("Traceback" in caplog.text) == has_traceback
