"""`tuneline`: every command, and how errors are told: one line, exit code 2."""

import sys

import typer

from tuneline.cli import data, doctor, exports, imports, models, runs, schedules, setup, sweeps, tables, train
from tuneline.errors import TunelineError
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
    """Run the command; a mistake of the user's ends with its message alone."""
    try:
        with explained():
            app()
    except TunelineError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(2)


if __name__ == "__main__":
    main()
