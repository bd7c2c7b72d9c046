"""Full disks and locked databases are recognized in the errors of all libraries and reported in one line."""

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
    """A device that fails every write like a full disk. A library that writes and renames would replace the device."""
    path = Path("/dev/full")
    if not path.is_char_device():
        pytest.skip("this machine has no /dev/full")
    return path


def error_of(action):
    try:
        action()
    except Exception as error:
        return error
    pytest.fail("nothing was raised")


def test_a_failed_write_of_python_is_a_disk_full_error(full_disk):
    def write():
        with full_disk.open("w") as file:
            file.write("x" * 10_000)

    message = str(translate(error_of(write)))
    assert message.startswith("A disk is full")
    assert "GB at " in message
    assert str(storage_errors.state.root()) in message


def test_a_failed_write_of_pyarrow_is_a_disk_full_error(full_disk):
    def write():
        with pa.OSFile(str(full_disk), "w") as file:
            file.write(b"x" * 10_000)

    assert isinstance(translate(error_of(write)), DiskFullError)


def test_a_failed_write_of_sqlite_through_sqlalchemy_is_a_disk_full_error(tmp_path):
    engine = sqlalchemy.create_engine(f"sqlite:///{tmp_path / 'x.db'}")
    with engine.connect() as connection:
        connection.execute(sqlalchemy.text("create table t (x)"))
        connection.execute(sqlalchemy.text("pragma max_page_count = 1"))
        add = sqlalchemy.text("insert into t values (zeroblob(100000))")

        error = translate(error_of(lambda: connection.execute(add)))

    assert isinstance(error, DiskFullError)
    engine.dispose()


def test_failed_writes_of_safetensors_and_torch_are_disk_full_errors(full_disk, monkeypatch):
    import torch
    from safetensors import SafetensorError

    monkeypatch.setattr(storage_errors, "_free", lambda path: 0)

    def save():
        with full_disk.open("wb") as file:
            torch.save({"x": torch.zeros(100_000)}, file)

    error = error_of(save)
    assert isinstance(translate(error), DiskFullError), repr(error)
    text = "Error while serializing: I/O error: No space left on device (os error 28)"  # it would replace the device
    assert isinstance(translate(SafetensorError(text)), DiskFullError)


def test_an_exceeded_quota_is_reported_with_the_error_that_it_caused():
    def deliver():
        try:
            raise OSError(errno.EDQUOT, "Disk quota exceeded", "/data/model.safetensors")
        except OSError as error:
            raise DeliveryError("to: /data cannot be written. The export is kept in /x.") from error

    message = str(translate(error_of(deliver)))

    assert message.startswith("to: /data cannot be written. The export is kept in /x. A disk is full: ")
    assert "/data/model.safetensors could not be written" in message


def test_a_failed_copy_names_its_target_once():
    def copy():
        with translated():
            raise OSError(errno.ENOSPC, "No space left on device", "/model/config.json", None, "/home/config.json")

    message = str(translate(error_of(copy)))

    assert message.count("A disk is full") == 1
    assert "/home/config.json could not be written" in message

    def wrap():
        try:
            copy()
        except DiskFullError as error:
            raise DeliveryError(str(error)) from error

    assert str(translate(error_of(wrap))) == message


def test_the_text_of_a_data_error_is_not_taken_for_a_full_disk():
    assert translate(DataError("data.jsonl:3: 'No space left on device' is no role.")) is None
    assert translate(ValueError("database is full: no space left on device")) is None
    assert translate(RuntimeError("write failed")) is None


def test_a_locked_database_is_reported_without_advice_to_repair_it(tmp_path, monkeypatch):
    from tuneline.tracking import server_check

    path = tmp_path / "mlflow.db"
    with sqlite3.connect(path) as holder:
        holder.execute("create table t (x)")
        holder.commit()
        holder.execute("begin exclusive")
        monkeypatch.setattr(server_check, "BUSY_SECONDS", 0.1)

        with pytest.raises(TrackingError) as error_info:
            server_check.check_reachable(f"sqlite:///{path}")
        holder.rollback()

    message = str(error_info.value)
    assert "is locked by another process" in message
    assert "Mend" not in message
    assert "init" not in message
    server_check.check_reachable(f"sqlite:///{path}")


def test_damaged_and_unreadable_databases_have_different_messages(tmp_path):
    from tuneline.tracking import server_check

    (tmp_path / "mlflow.db").write_bytes(b"this is no database" * 100)
    with pytest.raises(TrackingError, match=r"The file is damaged: restore it from a backup"):
        server_check.check_reachable(f"sqlite:///{tmp_path / 'mlflow.db'}")
    (tmp_path / "folder.db").mkdir()
    with pytest.raises(TrackingError, match=r"Check that the file and its folder are readable and writable"):
        server_check.check_reachable(f"sqlite:///{tmp_path / 'folder.db'}")


def test_other_errors_are_not_translated():
    with pytest.raises(KeyError), translated():
        raise KeyError("x")


def test_the_command_line_reports_a_full_disk_in_one_line_with_exit_code_2(full_disk):
    code = "import sys; from tuneline.cli import app, main\n"
    code += "@app.app.command()\ndef fill():\n    open('/dev/full', 'w').write('x' * 10000)\n"
    code += "sys.argv = ['tuneline', 'fill']; main.main()"

    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

    assert run.returncode == 2
    assert run.stderr.startswith("A disk is full")
    assert len(run.stderr.splitlines()) == 1
