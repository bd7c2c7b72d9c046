"""The log file of a run: it receives prints, log records and the output of child processes, and only it does."""

import logging
import re
import subprocess
import sys

import pytest

from tuneline.runner import run_log

SCRIPT = """
import logging, os, subprocess, sys
from tuneline.runner import run_log

print("before")
try:
    with run_log.capture("my run/1", echo={echo}) as log:
        print("printed")
        print("to stderr", file=sys.stderr)
        os.write(1, b"from C\\n")
        subprocess.run([sys.executable, "-c", "print('from a child')"], check=True)
        logging.getLogger("library").warning("logged %d", 5)
        log.stdout.write("shown\\n")
        if {fail}:
            raise ValueError("broken")
except ValueError:
    pass
print("after")
"""


def run(home, *, echo=False, fail=False):
    process = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(echo=echo, fail=fail)], capture_output=True, text=True, check=True
    )
    (path,) = (home / "logs").iterdir()
    return process, path


def test_all_output_is_written_to_the_file_and_the_screen_shows_only_the_view(home):
    process, path = run(home)

    assert process.stdout.splitlines() == ["before", "shown", "after"]
    assert process.stderr == ""
    lines = path.read_text().splitlines()
    assert {"printed", "to stderr", "from C", "from a child"} <= set(lines)
    assert any(re.fullmatch(r"[-0-9]+ [:,0-9]+ WARNING library: logged 5", line) for line in lines)
    assert re.fullmatch(r"my_run_1-\d{8}T\d{6}Z\.log", path.name)


def test_echo_also_copies_the_log_to_standard_error(home):
    process, path = run(home, echo=True)

    assert process.stdout.splitlines() == ["before", "shown", "after"]
    assert sorted(process.stderr.splitlines()) == sorted(path.read_text().splitlines())
    assert "printed" in process.stderr


def test_the_file_ends_with_the_traceback_of_an_error(home):
    _, path = run(home, fail=True)

    assert path.read_text().splitlines()[-1] == "ValueError: broken"


def test_two_commands_of_one_second_have_two_files(home):
    with run_log.capture("demo") as one, run_log.capture("demo") as other:
        assert one.path != other.path


def test_replaced_streams_are_restored(home, capsys):
    stdout, handlers = sys.stdout, list(logging.root.handlers)

    def write_and_fail():
        with run_log.capture("demo") as log:
            sys.stdout.write("printed")
            raise KeyError(log.path)

    with pytest.raises(KeyError) as error:
        write_and_fail()

    assert sys.stdout is stdout
    assert capsys.readouterr().out == ""
    assert "printed" in error.value.args[0].read_text()
    assert logging.root.handlers == handlers
