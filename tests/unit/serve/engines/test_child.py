"""Supervised child processes: the end of the parent, restarts, and giving up."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from tuneline.serve.engines.child import ChildProcess, ChildSpec
from tuneline.serve.engines.interface import EngineFailedError

SERVER = """
import http.server, os, pathlib, sys
if pathlib.Path(sys.argv[2]).exists():
    sys.exit("no more memory")
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.headers["Authorization"] == "Bearer " + os.environ["KEY"] else 401)
        self.send_header("Content-Length", "0")
        self.end_headers()
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


@pytest.fixture
def spec(tmp_path, home):
    """A server that fails to start once the file `broken` exists."""

    def command(port):
        return [sys.executable, "-c", SERVER, str(port), str(tmp_path / "broken")]

    return ChildSpec("test", command, "KEY", start_seconds=30, max_restarts=2)


def wait_for(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def server_of(child):
    return psutil.Process(child.pid).children()[0]


def test_a_child_that_does_not_come_back_is_given_up_with_a_reason(spec, tmp_path):
    child = ChildProcess(spec)
    try:
        child.check()
        (tmp_path / "broken").touch()
        server_of(child).kill()

        wait_for(lambda: "given up" in str(child.failure()))

        with pytest.raises(EngineFailedError, match=r"failed 2 times and is given up\. .*Log: "):
            child.check()
        assert "no more memory" in child.log_tail()
    finally:
        child.close()


def test_closing_ends_the_process_and_its_children(spec):
    child = ChildProcess(spec)
    server = server_of(child)

    child.close()
    child.close()

    assert not server.is_running()
    with pytest.raises(EngineFailedError, match="is closed"):
        child.check()


def test_a_killed_guard_takes_the_server_with_it_and_both_come_back(spec):
    child = ChildProcess(spec)
    try:
        server, port = server_of(child), child.port
        os.kill(child.pid, signal.SIGKILL)

        wait_for(lambda: child.starts == 2 and child.is_healthy())

        wait_for(lambda: not server.is_running())
        assert child.port != port
    finally:
        child.close()


def test_the_server_ends_when_the_parent_is_killed(tmp_path):
    code = (
        "import subprocess, sys, time\n"
        "guard = [sys.executable, '-m', 'tuneline.serve.engines.guard', 'sleep', '1000']\n"
        "process = subprocess.Popen(guard, stdin=subprocess.PIPE, start_new_session=True)\n"
        "print(process.pid, flush=True)\n"
        "time.sleep(1000)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    guard = psutil.Process(int(parent.stdout.readline()))
    wait_for(lambda: [process.name() for process in guard.children()] == ["sleep"])
    [sleeper] = guard.children()

    parent.kill()
    parent.communicate()

    wait_for(lambda: not sleeper.is_running() or sleeper.status() == psutil.STATUS_ZOMBIE)
    wait_for(lambda: not guard.is_running() or guard.status() == psutil.STATUS_ZOMBIE)
