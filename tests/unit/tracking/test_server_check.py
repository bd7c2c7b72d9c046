"""Checks of MLflow before a run, some with a real server."""

import sqlite3
import subprocess
import sys

import mlflow
import pytest
import sqlalchemy

from tests import mlflow_server, tiny
from tuneline import state
from tuneline.errors import DiskFullError, TrackingError
from tuneline.tracking import integrity, model_source, promotion, registry, server_check

FIRST = """
import sys
import mlflow
from tuneline.tracking import server_check

mlflow.set_tracking_uri(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
server_check.create_schema(sys.argv[1])
mlflow.MlflowClient().create_registered_model(sys.argv[2])
mlflow.create_experiment(sys.argv[2])
"""


@pytest.mark.slow
def test_two_concurrent_first_processes_create_one_schema(tmp_path, home):
    """MLflow creates its tables without a lock, so that one of two processes fails in its migrations."""
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    rivals = [subprocess.Popen([sys.executable, "-c", FIRST, uri, name], **pipes) for name in ("one", "two")]
    assert [rival.stdout.readline() for rival in rivals] == ["ready\n"] * 2

    for rival in rivals:
        rival.stdin.write("go\n")
        rival.stdin.flush()
    errors = [rival.communicate(timeout=300)[1] for rival in rivals]

    assert [rival.returncode for rival in rivals] == [0, 0], errors


def test_a_store_of_another_mlflow_version_is_reported_in_one_line(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        database.execute("create table alembic_version (version_num varchar(32) not null)")
        database.execute("insert into alembic_version values ('of a later MLflow')")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    mlflow.set_tracking_uri(uri)

    with pytest.raises(TrackingError, match="mlflow.db cannot be opened: .*of a later MLflow.*mlflow db upgrade"):
        server_check.create_schema(uri)
    mlflow.set_tracking_uri(None)


def test_tables_left_incomplete_by_a_full_disk_are_created_again(tmp_path, home, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    mlflow.set_tracking_uri(uri)

    def fill(connection, _):
        connection.execute("pragma max_page_count = 90")

    sqlalchemy.event.listen(sqlalchemy.Engine, "connect", fill)
    (tmp_path / f"{server_check.UNFINISHED}of-a-killed-process").mkdir()
    with pytest.raises(DiskFullError) as caught:
        server_check.create_schema(uri)
    sqlalchemy.event.remove(sqlalchemy.Engine, "connect", fill)

    assert str(caught.value).startswith("A disk is full")
    server_check.create_schema(uri)
    assert mlflow.MlflowClient().create_registered_model("m").name == "m"
    assert not list(tmp_path.glob(f"{server_check.UNFINISHED}*"))
    mlflow.set_tracking_uri(None)


@pytest.fixture
def connected(tmp_path, monkeypatch):
    """Set MLflow's tracking URI until the test ends."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    def connect(uri):
        mlflow.set_tracking_uri(uri)
        return mlflow.MlflowClient()

    yield connect
    mlflow.set_tracking_uri(None)


def make_model(folder, content):
    """Write a model with the files stored next to it; returns its content hash."""
    content_hash = tiny.store_model(folder, content)
    (folder / "MLmodel").write_text("flavors: {}\n")
    return content_hash


def register(client, folder, content, experiment):
    run = client.create_run(experiment)
    content_hash = make_model(folder, content)
    return registry.register("served", content_hash, folder.as_uri(), run.info.run_id, {"zenml.run": content})


@pytest.mark.slow
def test_models_are_uploaded_to_a_server(tmp_path, home, connected):
    with mlflow_server.running(tmp_path, "--artifacts-destination", str(tmp_path / "stored")) as uri:
        client = connected(uri)
        server_check.check_registry()
        server_check.check_registry(["not there yet"])
        experiment = client.create_experiment("served")
        client.create_registered_model("refused")
        run_id = client.create_run(experiment).info.run_id
        with pytest.raises(mlflow.MlflowException, match="Invalid model version source"):
            client.create_model_version("refused", tmp_path.as_uri(), run_id=run_id)

        first, new = register(client, tmp_path / "a model", "one", experiment)
        again, new_again = register(client, tmp_path / "the same", "one", experiment)
        second, _ = register(client, tmp_path / "other", "two", experiment)

        assert (new, new_again, again) == (True, False, first)
        assert first.source == f"runs:/{first.run_id}/{model_source.ARTIFACT}"
        promotion.force("served", "1", "first")
        promotion.force("served", "2", "better")
        champion = registry.find_version("served", "champion")
        assert (champion.version, champion.aliases) == (second.version, ("champion",))
        assert (integrity.verified_folder(champion) / "model.safetensors").read_text() == "two"
        assert (champion.folder().parent / "MLmodel").is_file()
        assert promotion.rollback("served").version == "1"
        assert promotion.verify() == 5
        assert not list((tmp_path / "stored").rglob(server_check.PROBE_FILE))

        stored = next((tmp_path / "stored").rglob(f"{second.run_id}/**/model.safetensors"))
        stored.write_text("owt")
        assert integrity.verified_folder(second).is_dir(), "the local copy is intact"
        with pytest.raises(TrackingError, match="version 2 .* has the sha256 .* expected"):
            promotion.force("served", "2", "again")
        assert not list(state.folder("work").iterdir())


@pytest.mark.slow
def test_a_server_without_artifact_proxy_gets_hard_links(tmp_path, home, connected, monkeypatch):
    root = tmp_path / "root"
    with mlflow_server.running(tmp_path, "--no-serve-artifacts", "--default-artifact-root", root.as_uri()) as uri:
        client = connected(uri)
        server_check.check_registry()
        experiment = client.create_experiment("served")

        version, new = register(client, tmp_path / "a model", "one", experiment)

        assert new
        weights = integrity.verified_folder(version) / "model.safetensors"
        assert weights.is_relative_to(root)
        assert weights.samefile(tmp_path / "a model" / "files" / "model.safetensors")

        client.create_experiment("elsewhere", artifact_location=(tmp_path / "not" / "here").as_uri())
        monkeypatch.setattr(server_check, "LOCAL_HOSTS", ())
        with pytest.raises(TrackingError, match="a folder that is not on this machine"):
            server_check.check_registry(["elsewhere"])
        client.create_experiment("unproxied", artifact_location="mlflow-artifacts:/unproxied")
        with pytest.raises(TrackingError, match="which is not writable from here"):
            server_check.check_registry(["unproxied"])


def test_a_local_registry_gets_the_uri_unchanged(tmp_path, monkeypatch):
    monkeypatch.setattr(mlflow, "get_registry_uri", lambda: f"sqlite:///{tmp_path}/not there/mlflow.db")
    server_check.check_registry()

    assert model_source.resolve_source(tmp_path.as_uri(), "no run") == tmp_path.as_uri()
