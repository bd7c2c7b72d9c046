"""What a killed process left is found, and nothing of a living one, another host or another user."""

import json
import os
import signal
import socket
import time

import pytest

from tuneline import owner, state


def fork(work):
    """Run something in a child process that lives until it is killed; return its number once it is through."""
    reads, writes = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            work()
            os.write(writes, b"x")
            time.sleep(60)
        finally:
            os._exit(1)
    assert os.read(reads, 1) == b"x"
    return pid


def kill(pid):
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


@pytest.fixture
def children():
    """Numbers of child processes to end."""
    found = []
    yield found
    for pid in found:
        kill(pid)


def make_scratch():
    folder = owner.scratch_folder() / "merge-1"
    folder.mkdir()
    (folder / "weights").write_bytes(b"x" * 1000)


def test_a_killed_process_is_found_with_what_it_had_begun(home):
    pid = fork(
        lambda: [
            owner.current_owner().add("kind", "one"),
            owner.current_owner().add("kind", "two"),
            owner.current_owner().drop("kind", "one"),
        ]
    )
    assert owner.dead_owners() == []

    kill(pid)

    (dead,) = owner.dead_owners()
    assert dead.notes == {"kind": ["two"]}
    dead.keep({"kind": ["two"]})
    assert len(owner.dead_owners()) == 1
    dead.keep({})
    assert owner.dead_owners() == []
    assert list((home / "runs").iterdir()) == []


@pytest.mark.parametrize("change", [{"host": "elsewhere"}, {"user": os.getuid() + 1}])
def test_processes_of_other_hosts_and_users_are_left_alone(home, change):
    kill(fork(make_scratch))
    (path,) = (home / "runs").glob("*.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | change))

    assert owner.dead_owners() == []
    assert owner.clear_scratch() == 0
    os.utime(path, (1, 1))
    assert owner.clear_scratch() == 1000, "after a week it does not count as living"


def test_scratch_is_cleared_once_no_living_process_uses_it(home, children):
    kill(fork(make_scratch))
    children.append(fork(owner.scratch_folder))

    assert owner.clear_scratch() == 0

    kill(children.pop())
    (home / "training" / "abc").mkdir(parents=True)
    assert owner.clear_scratch() == 1000
    assert list((home / "work").iterdir()) == []
    assert (home / "training" / "abc").is_dir(), "the state of a training is no scratch"


def test_a_process_does_not_clear_its_own_scratch(home):
    pid = os.fork()
    if not pid:
        make_scratch()
        os._exit(owner.clear_scratch() != 0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_an_owner_that_ends_leaves_nothing(home):
    import subprocess
    import sys

    code = "from tuneline import owner; owner.scratch_folder(); o = owner.current_owner()"
    code += "; o.add('a', 'b'); o.drop('a', 'b')"
    subprocess.run([sys.executable, "-c", code], check=True)

    assert list((home / "runs").iterdir()) == []


def test_a_note_says_whose_it_is(home):
    owner.current_owner()

    (path,) = (home / "runs").glob("*.json")
    assert json.loads(path.read_text()) == {
        "host": socket.gethostname(),
        "user": os.getuid(),
        "pid": os.getpid(),
        "notes": {},
    }


def test_nothing_is_cleared_where_there_is_nothing(home):
    assert owner.clear_scratch() == 0
    assert not state.root().exists()
