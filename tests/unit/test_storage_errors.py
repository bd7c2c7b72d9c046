"""A full disk and a locked database are recognized whoever says it, and told in one line."""

import errno
import sqlite3
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
import sqlalchemy

from tuneline import storage_errors
from tuneline.errors import DataError, DeliveryError, DiskFullError, TrackingError
from tuneline.storage_errors import translate, translated

pytestmark = pytest.mark.usefixtures("home")


@pytest.fixture
def full_disk():
    """A device that takes nothing, as a full disk. Give it to no library that renames: it would replace the device."""
    path = Path("/dev/full")
    if not path.is_char_device():
        pytest.skip("this machine has no /dev/full")
    return path


def caught(action):
    try:
        action()
    except Exception as error:
        return error
    pytest.fail("nothing was raised")


def test_a_write_of_python(full_disk):
    def write():
        with full_disk.open("w") as file:
            file.write("x" * 10_000)

    told = str(translate(caught(write)))
    assert told.startswith("A disk is full")
    assert "GB at " in told
    assert str(storage_errors.state.root()) in told


def test_a_write_of_pyarrow(full_disk):
    def write():
        with pa.OSFile(str(full_disk), "w") as file:
            file.write(b"x" * 10_000)

    assert isinstance(translate(caught(write)), DiskFullError)


def test_a_write_of_sqlite_through_sqlalchemy(tmp_path):
    engine = sqlalchemy.create_engine(f"sqlite:///{tmp_path / 'x.db'}")
    with engine.connect() as connection:
        connection.execute(sqlalchemy.text("create table t (x)"))
        connection.execute(sqlalchemy.text("pragma max_page_count = 1"))
        add = sqlalchemy.text("insert into t values (zeroblob(100000))")

        told = translate(caught(lambda: connection.execute(add)))

    assert isinstance(told, DiskFullError)
    engine.dispose()


def test_a_write_of_safetensors_and_of_torch(full_disk, monkeypatch):
    import torch
    from safetensors import SafetensorError

    monkeypatch.setattr(storage_errors, "_free", lambda path: 0)

    def save():
        with full_disk.open("wb") as file:
            torch.save({"x": torch.zeros(100_000)}, file)

    error = caught(save)
    assert isinstance(translate(error), DiskFullError), repr(error)
    words = "Error while serializing: I/O error: No space left on device (os error 28)"  # it would replace the device
    assert isinstance(translate(SafetensorError(words)), DiskFullError)


def test_the_quota_of_a_user_and_an_error_that_came_from_a_full_disk():
    def deliver():
        try:
            raise OSError(errno.EDQUOT, "Disk quota exceeded", "/data/model.safetensors")
        except OSError as error:
            raise DeliveryError("to: /data cannot be written. The export is kept in /x.") from error

    told = str(translate(caught(deliver)))

    assert told.startswith("to: /data cannot be written. The export is kept in /x. A disk is full: ")
    assert "/data/model.safetensors could not be written" in told


def test_a_copy_names_where_it_went_and_is_told_once():
    def copy():
        with translated():
            raise OSError(errno.ENOSPC, "No space left on device", "/model/config.json", None, "/home/config.json")

    told = str(translate(caught(copy)))

    assert told.count("A disk is full") == 1
    assert "/home/config.json could not be written" in told

    def wrap():
        try:
            copy()
        except DiskFullError as error:
            raise DeliveryError(str(error)) from error

    assert str(translate(caught(wrap))) == told


def test_a_row_that_speaks_of_a_full_disk_is_none():
    assert translate(DataError("data.jsonl:3: 'No space left on device' is no role.")) is None
    assert translate(ValueError("database is full: no space left on device")) is None
    assert translate(RuntimeError("write failed")) is None


def test_a_locked_database_is_told_as_such_and_not_to_be_repaired(tmp_path, monkeypatch):
    from tuneline.tracking import server_check

    path = tmp_path / "mlflow.db"
    with sqlite3.connect(path) as holder:
        holder.execute("create table t (x)")
        holder.commit()
        holder.execute("begin exclusive")
        monkeypatch.setattr(server_check, "BUSY_SECONDS", 0.1)

        with pytest.raises(TrackingError) as error:
            server_check.check_reachable(f"sqlite:///{path}")
        holder.rollback()

    told = str(error.value)
    assert "is locked by another process" in told
    assert "Mend" not in told
    assert "init" not in told
    server_check.check_reachable(f"sqlite:///{path}")


def test_a_damaged_database_and_one_that_cannot_be_opened_are_told_apart(tmp_path):
    from tuneline.tracking import server_check

    (tmp_path / "mlflow.db").write_bytes(b"this is no database" * 100)
    with pytest.raises(TrackingError, match=r"The file is damaged: restore it from a backup"):
        server_check.check_reachable(f"sqlite:///{tmp_path / 'mlflow.db'}")
    (tmp_path / "folder.db").mkdir()
    with pytest.raises(TrackingError, match=r"Check that the file and its folder are readable and writable"):
        server_check.check_reachable(f"sqlite:///{tmp_path / 'folder.db'}")


def test_other_errors_pass_as_they_are():
    with pytest.raises(KeyError), translated():
        raise KeyError("x")


def test_the_command_line_tells_a_full_disk_alone_with_exit_code_2(full_disk):
    code = "import sys; from tuneline.cli import app, main\n"
    code += "@app.app.command()\ndef fill():\n    open('/dev/full', 'w').write('x' * 10000)\n"
    code += "sys.argv = ['tuneline', 'fill']; main.main()"

    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

    assert run.returncode == 2
    assert run.stderr.startswith("A disk is full")
    assert len(run.stderr.splitlines()) == 1
