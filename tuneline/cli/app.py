"""Every command of `tuneline`."""

import typer

from tuneline.cli import (
    chat,
    data,
    doctor,
    exports,
    imports,
    models,
    predict,
    runs,
    schedules,
    serve,
    setup,
    sweeps,
    tables,
    train,
)

app = typer.Typer(
    name="tuneline",
    help="Fine-tune language models with cached steps, tracked experiments and a statistical promotion gate.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
COMMANDS = (setup, train, sweeps, tables, imports, data, runs, models, exports, serve, chat, predict, schedules, doctor)
for module in COMMANDS:
    module.add_commands(app)
