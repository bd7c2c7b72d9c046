"""Exit codes and messages of commands that are stopped by a signal or an error."""

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


def run_and_capture(command, capfd):
    code = signals.run_command(command)
    return code, capfd.readouterr().err


def as_typer_command(work):
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(work)
    return lambda: app(args=[])


@pytest.mark.parametrize("wrap", [lambda work: work, as_typer_command], ids=["plain", "typer"])
@pytest.mark.parametrize(("number", "code", "name"), [(signal.SIGTERM, 2, "SIGTERM"), (signal.SIGINT, 130, "Ctrl-C")])
def test_a_signal_prints_one_line_and_sets_the_exit_code(wrap, number, code, name, capfd):
    def work() -> None:
        send(number)

    assert run_and_capture(wrap(work), capfd) == (code, f"Stopped by {name}. Finished steps are kept.\n")


@pytest.mark.parametrize("wrap", [lambda work: work, as_typer_command], ids=["plain", "typer"])
@pytest.mark.parametrize(("kind", "code"), [(signals.Terminated, 2), (KeyboardInterrupt, 130)])
def test_a_raised_interrupt_has_the_exit_code_of_its_signal(wrap, kind, code, capfd):
    def work() -> None:
        raise kind

    assert run_and_capture(wrap(work), capfd)[0] == code


def test_an_error_caused_by_a_signal_shows_no_traceback(capfd):
    def work():
        try:
            send(signal.SIGTERM)
        except KeyboardInterrupt:
            raise RuntimeError("a library replaces the interrupt") from None

    assert run_and_capture(work, capfd) == (2, "Stopped by SIGTERM. Finished steps are kept.\n")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RecipeError("wrong"), 2),
        (StoppedError("wrong"), 2),
        (StoppedError("wrong", by="SIGTERM"), 2),
        (StoppedError("wrong", by="SIGINT"), 130),
    ],
)
def test_a_tuneline_error_prints_its_message_only(error, code, capfd):
    def work():
        raise error

    assert run_and_capture(work, capfd) == (code, "wrong\n")


def test_other_errors_and_exit_codes_are_unchanged(capfd):
    with pytest.raises(SystemExit) as end:
        signals.run_command(as_typer_command(lambda: (_ for _ in ()).throw(typer.Exit(1))))
    assert end.value.code == 1
    with pytest.raises(ZeroDivisionError):
        signals.run_command(lambda: 1 / 0)
    assert run_and_capture(lambda: None, capfd) == (0, "")


def test_signal_handlers_are_restored_and_ignored_signals_stay_ignored(capfd):
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


def test_a_signal_swallowed_by_a_library_stops_the_command_at_the_next_check(capfd):
    def work():
        with suppress(KeyboardInterrupt):
            send(signal.SIGINT)
        with signals.raise_on_signal():
            signals.raise_if_received()
        raise AssertionError("the command was not stopped")

    assert run_and_capture(work, capfd) == (130, "Stopped by Ctrl-C. Finished steps are kept.\n")


def test_a_signal_during_imports_prints_one_line_and_sets_the_exit_code():
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
