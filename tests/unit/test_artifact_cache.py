"""Local copies of remote artifacts: downloaded once, verified, limited in size, and kept while in use."""

import os
import subprocess
import sys

import pytest

from tuneline import artifact_cache, checksums, state
from tuneline.errors import ArtifactError, RecipeError

pytestmark = pytest.mark.usefixtures("home")


@pytest.fixture(autouse=True)
def nothing_in_use(monkeypatch):
    """Release the copies that another test uses, since all tests share one process."""
    in_use = {}
    monkeypatch.setattr(artifact_cache, "_in_use", in_use)
    yield in_use
    for file in in_use.values():
        file.close()


@pytest.fixture
def fetch():
    """Return a function that writes an artifact of 10 kB and counts its calls."""
    calls = []

    def write(folder):
        calls.append(folder)
        (folder / "rows.arrow").write_bytes(bytes(10_000))
        checksums.write(folder, "hash")

    write.calls = calls
    return write


def release(in_use):
    """Release the locks, as the end of a process does."""
    for file in in_use.values():
        file.close()
    in_use.clear()


def test_a_copy_is_fetched_once(fetch):
    first = artifact_cache.cached_folder("a", fetch, checksums.check)

    assert artifact_cache.cached_folder("a", fetch, checksums.check) == first
    assert len(fetch.calls) == 1
    assert first.is_relative_to(state.root())


def test_a_damaged_copy_is_fetched_again(fetch, caplog):
    (artifact_cache.cached_folder("a", fetch, checksums.check) / "rows.arrow").write_bytes(b"other")

    again = artifact_cache.cached_folder("a", fetch, checksums.check)

    assert (again / "rows.arrow").read_bytes() == bytes(10_000)
    assert "is downloaded again" in caplog.text


def test_a_truncated_download_raises_an_error_and_leaves_no_files(fetch):
    def fetch_truncated(folder):
        fetch(folder)
        (folder / "rows.arrow").write_bytes(bytes(9_000))

    with pytest.raises(ArtifactError, match="has the sha256"):
        artifact_cache.cached_folder("a", fetch_truncated, checksums.check)
    assert list((state.root() / "downloads").glob("a*/")) == []


def test_the_least_recently_used_copies_are_removed_above_the_size_limit(fetch, monkeypatch, nothing_in_use):
    monkeypatch.setenv(artifact_cache.SIZE_VARIABLE, "25e-6")
    first, second = (artifact_cache.cached_folder(name, fetch, checksums.check) for name in "ab")
    release(nothing_in_use)
    artifact_cache.cached_folder("a", fetch, checksums.check)
    release(nothing_in_use)

    third = artifact_cache.cached_folder("c", fetch, checksums.check)

    assert [path.is_dir() for path in (first, second, third)] == [True, False, True]


def test_a_copy_in_use_is_kept_above_the_size_limit(fetch, monkeypatch, nothing_in_use):
    first = artifact_cache.cached_folder("a", fetch, checksums.check)
    release(nothing_in_use)
    code = "import sys; from pathlib import Path; from tuneline import artifact_cache, checksums; "
    code += "artifact_cache.cached_folder('a', None, checksums.check); print('in use', flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1, env=os.environ) as other:
        assert other.stdout.readline() == b"in use\n"
        monkeypatch.setenv(artifact_cache.SIZE_VARIABLE, "0")

        artifact_cache.cached_folder("b", fetch, checksums.check)

        assert first.is_dir()
        other.stdin.close()
    artifact_cache.cached_folder("c", fetch, checksums.check)
    assert not first.is_dir(), "the other process ended"


def test_leftovers_of_a_killed_download_are_removed(fetch):
    leftover = state.folder("downloads") / "dead.new"
    leftover.mkdir()

    artifact_cache.cached_folder("a", fetch, checksums.check)

    assert not leftover.exists()


@pytest.mark.parametrize("value", ["much", "-1", "nan"])
def test_an_invalid_size_limit_is_an_error(fetch, monkeypatch, value):
    monkeypatch.setenv(artifact_cache.SIZE_VARIABLE, value)

    with pytest.raises(RecipeError, match=f"TUNELINE_DOWNLOADS_GB='{value}' is not a size"):
        artifact_cache.cached_folder("a", fetch, checksums.check)
