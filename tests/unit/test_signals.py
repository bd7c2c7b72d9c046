"""How commands end: one line, and an exit code that says why."""

import os
import signal
import subprocess
import sys
from contextlib import suppress

import pytest
import typer

from tuneline import signals
from tuneline.errors import RecipeError, StoppedError


def send(number):
    os.kill(os.getpid(), number)


def ended(command, capfd):
    code = signals.run_command(command)
    return code, capfd.readouterr().err


def in_typer(work):
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(work)
    return lambda: app(args=[])


@pytest.mark.parametrize("wrap", [lambda work: work, in_typer], ids=["plain", "typer"])
@pytest.mark.parametrize(("number", "code", "said"), [(signal.SIGTERM, 2, "SIGTERM"), (signal.SIGINT, 130, "Ctrl-C")])
def test_a_signal_is_one_line_and_a_code(wrap, number, code, said, capfd):
    def work() -> None:
        send(number)

    assert ended(wrap(work), capfd) == (code, f"Stopped by {said}. Finished steps are kept.\n")


@pytest.mark.parametrize("wrap", [lambda work: work, in_typer], ids=["plain", "typer"])
@pytest.mark.parametrize(("kind", "code"), [(signals.Terminated, 2), (KeyboardInterrupt, 130)])
def test_an_interrupt_that_was_raised_ends_as_its_signal(wrap, kind, code, capfd):
    def work() -> None:
        raise kind

    assert ended(wrap(work), capfd)[0] == code


def test_an_error_that_follows_from_a_signal_shows_no_traceback(capfd):
    def work():
        try:
            send(signal.SIGTERM)
        except KeyboardInterrupt:
            raise RuntimeError("a library says it in its own words") from None

    assert ended(work, capfd) == (2, "Stopped by SIGTERM. Finished steps are kept.\n")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RecipeError("wrong"), 2),
        (StoppedError("wrong"), 2),
        (StoppedError("wrong", by="SIGTERM"), 2),
        (StoppedError("wrong", by="SIGINT"), 130),
    ],
)
def test_an_error_of_ours_is_its_message(error, code, capfd):
    def work():
        raise error

    assert ended(work, capfd) == (code, "wrong\n")


def test_other_errors_and_exit_codes_pass(capfd):
    with pytest.raises(SystemExit) as end:
        signals.run_command(in_typer(lambda: (_ for _ in ()).throw(typer.Exit(1))))
    assert end.value.code == 1
    with pytest.raises(ZeroDivisionError):
        signals.run_command(lambda: 1 / 0)
    assert ended(lambda: None, capfd) == (0, "")


def test_handlers_are_put_back_and_those_of_others_stay(capfd):
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        with signals.raise_on_signal() as stop:
            assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
            send(signal.SIGTERM)
        assert stop.name == ""
    finally:
        signal.signal(signal.SIGTERM, before[signal.SIGTERM])
    signals.run_command(lambda: send(signal.SIGTERM))
    assert {number: signal.getsignal(number) for number in before} == before


def test_a_signal_that_a_library_swallowed_ends_the_command_at_the_next_check(capfd):
    def work():
        with suppress(KeyboardInterrupt):
            send(signal.SIGINT)
        with signals.raise_on_signal():
            signals.raise_if_received()
        raise AssertionError("it went on")

    assert ended(work, capfd) == (130, "Stopped by Ctrl-C. Finished steps are kept.\n")


def test_a_signal_while_the_commands_are_imported_is_one_line_and_a_code():
    code = (
        "import os, signal, sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'tuneline.cli.app': os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Finder())\n"
        "from tuneline.cli.main import main; main()"
    )

    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

    assert (run.returncode, run.stderr) == (130, "Stopped by Ctrl-C. Finished steps are kept.\n")


def test_a_second_signal_ends_the_process_at_once():
    pid = os.fork()
    if not pid:
        with signals.raise_on_signal():
            try:
                send(signal.SIGTERM)
            except KeyboardInterrupt:
                send(signal.SIGTERM)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGTERM
