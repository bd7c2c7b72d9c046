"""Leftovers of killed processes are found; those of running processes, other hosts and other users are ignored."""

import json
import os
import signal
import socket
import time

import pytest

from tuneline import owner, state


def fork(work):
    """Run `work` in a child process that then waits to be killed; return its process id once `work` is done."""
    read_end, write_end = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            work()
            os.write(write_end, b"x")
            time.sleep(60)
        finally:
            os._exit(1)
    assert os.read(read_end, 1) == b"x"
    return pid


def kill(pid):
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


@pytest.fixture
def children():
    """Process ids of children to kill at the end of the test."""
    pids = []
    yield pids
    for pid in pids:
        kill(pid)


def make_scratch():
    folder = owner.scratch_folder() / "merge-1"
    folder.mkdir()
    (folder / "weights").write_bytes(b"x" * 1000)


def test_a_killed_process_is_found_with_its_notes(home):
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
def test_processes_of_other_hosts_and_users_are_ignored(home, change):
    kill(fork(make_scratch))
    (path,) = (home / "runs").glob("*.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | change))

    assert owner.dead_owners() == []
    assert owner.clear_scratch() == 0
    os.utime(path, (1, 1))
    assert owner.clear_scratch() == 1000, "the process is considered dead after a week"


def test_scratch_is_cleared_once_no_running_process_uses_it(home, children):
    kill(fork(make_scratch))
    children.append(fork(owner.scratch_folder))

    assert owner.clear_scratch() == 0

    kill(children.pop())
    (home / "training" / "abc").mkdir(parents=True)
    assert owner.clear_scratch() == 1000
    assert list((home / "work").iterdir()) == []
    assert (home / "training" / "abc").is_dir(), "training state is not scratch"


def test_a_process_does_not_clear_its_own_scratch(home):
    pid = os.fork()
    if not pid:
        make_scratch()
        os._exit(owner.clear_scratch() != 0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_a_process_that_exits_leaves_no_files(home):
    import subprocess
    import sys

    code = "from tuneline import owner; owner.scratch_folder(); o = owner.current_owner()"
    code += "; o.add('a', 'b'); o.drop('a', 'b')"
    subprocess.run([sys.executable, "-c", code], check=True)

    assert list((home / "runs").iterdir()) == []


def test_the_file_of_a_process_names_its_host_user_and_pid(home):
    owner.current_owner()

    (path,) = (home / "runs").glob("*.json")
    assert json.loads(path.read_text()) == {
        "host": socket.gethostname(),
        "user": os.getuid(),
        "pid": os.getpid(),
        "notes": {},
    }


def test_clearing_scratch_does_not_create_the_state_root(home):
    assert owner.clear_scratch() == 0
    assert not state.root().exists()
