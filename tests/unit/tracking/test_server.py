"""What is asked of MLflow before anything runs; a real server where one is needed."""

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import mlflow
import pytest

from tests import tiny
from tuneline.errors import TrackingError
from tuneline.tracking import intact, promotion, registry, server, uploads

FIRST = """
import sys
import mlflow
from tuneline.tracking import server

mlflow.set_tracking_uri(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
server.make_schema(sys.argv[1])
mlflow.MlflowClient().create_registered_model(sys.argv[2])
mlflow.create_experiment(sys.argv[2])
"""


@pytest.mark.slow
def test_two_first_processes_make_one_schema(tmp_path, home):
    """MLflow's registry makes its tables without a lock: one of two processes dies in its migrations."""
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    rivals = [subprocess.Popen([sys.executable, "-c", FIRST, uri, name], **pipes) for name in ("one", "two")]
    assert [rival.stdout.readline() for rival in rivals] == ["ready\n"] * 2

    for rival in rivals:
        rival.stdin.write("go\n")
        rival.stdin.flush()
    errors = [rival.communicate(timeout=300)[1] for rival in rivals]

    assert [rival.returncode for rival in rivals] == [0, 0], errors


def test_a_store_that_another_version_made_is_told_in_one_line(tmp_path, home, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "mlflow.db").write_text("this is no database, whatever its name says" * 100)
    uri = f"sqlite:///{tmp_path}/mlflow.db"

    with pytest.raises(TrackingError, match="cannot be opened"):
        server.check_reachable(uri)
