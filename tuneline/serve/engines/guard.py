"""Run a command, and end it with its whole process group when the parent process ends.

`python -m tuneline.serve.engines.guard COMMAND...`. The parent holds the other end of the standard input: when the
parent dies, even by SIGKILL, the input is closed. The command is killed too if the guard itself is killed.
"""

import ctypes
import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress

PR_SET_PDEATHSIG = 1
TERM_SECONDS = 5.0
"""Time between SIGTERM and SIGKILL."""


def main() -> None:
    """Run the command of the command line and exit with its exit code."""
    libc = ctypes.CDLL(None)
    process = subprocess.Popen(
        sys.argv[1:],
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=lambda: libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL),
    )
    signal.signal(signal.SIGTERM, lambda *_: _end(process.pid))
    threading.Thread(target=_wait_for_parent, args=(process.pid,), daemon=True).start()
    code = process.wait()
    _signal(process.pid, signal.SIGKILL)  # children of the command
    os._exit(code if code >= 0 else 128 - code)


def _wait_for_parent(group: int) -> None:
    while sys.stdin.buffer.read(4096):
        pass
    _end(group)


def _end(group: int) -> None:
    _signal(group, signal.SIGTERM)
    timer = threading.Timer(TERM_SECONDS, _signal, (group, signal.SIGKILL))
    timer.daemon = True
    timer.start()


def _signal(group: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(group, number)


if __name__ == "__main__":
    main()
