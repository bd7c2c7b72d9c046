"""Location of the state root, locks and cached JSON files."""

import pytest
from filelock import Timeout

from tuneline import state


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A working directory below a project folder, without TUNELINE_HOME."""
    monkeypatch.delenv("TUNELINE_HOME", raising=False)
    folder = tmp_path / "project" / "deep"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    return tmp_path / "project"


def test_the_environment_variable_takes_precedence(project, monkeypatch):
    (project / ".tuneline").mkdir()
    monkeypatch.setenv("TUNELINE_HOME", str(project / "elsewhere"))

    assert state.root() == project / "elsewhere"


def test_a_home_may_be_relative_or_begin_with_a_tilde(project, monkeypatch):
    monkeypatch.setenv("HOME", str(project))
    monkeypatch.setenv("TUNELINE_HOME", "~/mine")
    tilde = state.root()
    monkeypatch.setenv("TUNELINE_HOME", "here")

    assert (tilde, state.root()) == (project / "mine", project / "deep" / "here")


def test_a_root_above_the_working_directory_is_found(project):
    (project / ".tuneline").mkdir()

    assert state.root() == project / ".tuneline"


def test_the_nearest_root_wins(project):
    (project / ".tuneline").mkdir()
    (project / "deep" / ".tuneline").mkdir()

    assert state.root() == project / "deep" / ".tuneline"


def test_the_default_root_is_in_the_working_directory_and_is_not_created(project):
    assert state.root() == project / "deep" / ".tuneline"
    assert not state.root().exists()


def test_a_file_with_the_name_of_the_root_is_ignored(project):
    (project / ".tuneline").touch()

    assert state.root() == project / "deep" / ".tuneline"


def test_a_missing_folder_is_created(home):
    assert state.folder("scores") == home / "scores"
    assert (home / "scores").is_dir()


@pytest.mark.usefixtures("home")
def test_a_lock_is_exclusive():
    with state.lock("x"):
        with pytest.raises(Timeout):
            state.lock("x", timeout_seconds=0).acquire()
        state.lock("other", timeout_seconds=0).acquire().lock.release()

    state.lock("x", timeout_seconds=0).acquire().lock.release()


def test_a_truncated_cache_file_is_ignored_with_a_warning(tmp_path, caplog):
    path = tmp_path / "cache.json"

    assert state.read_cached_json(path) is None
    assert not caplog.text
    path.write_text('{"a": 1}')
    assert state.read_cached_json(path) == {"a": 1}
    path.write_bytes(b'{"a": "\xff')
    assert state.read_cached_json(path) is None
    assert f"{path} is not valid JSON" in caplog.text
