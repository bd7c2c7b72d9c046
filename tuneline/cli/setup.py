"""`tuneline init` and `tuneline ui`."""

import os
import sys
from typing import Annotated

import typer

from tuneline.cli import show


def add_commands(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.command()(init)
    app.command()(ui)


def init(
    stack: Annotated[
        str | None, typer.Option(help="Name of an existing ZenML stack to use instead of the embedded one.")
    ] = None,
) -> None:
    """Activate a stack for this folder: the embedded one (ZenML and MLflow on SQLite), or an existing one."""
    show.silence_logs()
    from tuneline import state
    from tuneline.zenml_integration import stack as stacks
    from tuneline.zenml_integration import tracker

    name = stacks.init(stack)
    uri = tracker.connect_to_registry()
    show.console().print(
        f"Stack {name} is active in this folder. State root: {state.root()}. MLflow: {uri}.", soft_wrap=True
    )


def ui(
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 5000,
    host: Annotated[
        str, typer.Option(help="Address to listen on; with another address, other machines can read all runs.")
    ] = ("127.0.0.1"),
) -> None:
    """Serve the MLflow UI for the active stack."""
    show.silence_logs()
    from tuneline.zenml_integration import tracker

    uri = tracker.connect()
    if uri.startswith("http"):
        show.console().print(f"MLflow of the active stack runs on a server: {uri}")
        return
    show.console().print(f"MLflow at http://{host}:{port} (store {uri}); stop it with Ctrl-C.", soft_wrap=True)
    environment = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", **os.environ}
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--backend-store-uri",
        uri,
        "--host",
        host,
        "--port",
        str(port),
    ]
    os.execve(sys.executable, command, environment)
