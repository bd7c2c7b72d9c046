"""`tuneline`: every command, and how errors are told: one line, exit code 2."""

import sys

import typer

from tuneline import signals
from tuneline.cli import data, doctor, exports, imports, models, runs, schedules, setup, sweeps, tables, train
from tuneline.storage_errors import explained

app = typer.Typer(
    name="tuneline",
    help="Fine-tune language models as cached, versioned, gated pipelines.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
for room in (setup, train, sweeps, tables, imports, data, runs, models, exports, schedules, doctor):
    room.add_to(app)


def main() -> None:
    """Run the command; a mistake of the user's, SIGTERM and Ctrl-C end with one line alone."""
    sys.exit(signals.exit_code(_command))


def _command() -> None:
    with explained():
        app()


if __name__ == "__main__":
    main()
