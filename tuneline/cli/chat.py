"""`tuneline chat`."""

import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tuneline.cli import show
from tuneline.errors import RecipeError

if TYPE_CHECKING:
    from tuneline.config.sections.serve import ServeConfig
    from tuneline.serve.chat.session import Session

UrlOption = Annotated[
    str | None, typer.Option(help="Address of a running server, such as http://127.0.0.1:8000, instead of a model.")
]
KeyOption = Annotated[str | None, typer.Option(envvar="TUNELINE_API_KEY", show_envvar=True, help="Key of the server.")]


def add_commands(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command()(chat)


def chat(
    model: Annotated[
        str | None,
        typer.Argument(
            help="A registered model (demo@champion, demo/7), a folder, a catalogue name, a Hub repository, or a "
            "LlamaFactory inference file. With --url: the name of a model on the server."
        ),
    ] = None,
    url: UrlOption = None,
    key: KeyOption = None,
    system: Annotated[str, typer.Option(help="System message.")] = "",
    tools: Annotated[Path | None, typer.Option(help="JSON file with the functions that the model can call.")] = None,
    param: Annotated[
        list[str] | None,
        typer.Option("--param", "-p", help="Parameter, such as temperature=0.2 or max_tokens=200; can be repeated."),
    ] = None,
    compare: Annotated[
        str | None, typer.Option(help="A second model whose answers are shown too; base: the base model.")
    ] = None,
) -> None:
    """Chat with a model or a server in the terminal; reads one prompt per line from a pipe. /help lists commands."""
    if model is None and url is None:
        raise RecipeError("Expected a model or --url, found neither. Example: tuneline chat demo@champion")
    from tuneline.cli.chat_input import LineReader, history_file
    from tuneline.cli.chat_loop import ChatLoop
    from tuneline.cli.chat_view import open_view
    from tuneline.serve.chat import conversation, opening, options

    show.silence_logs()
    view = open_view()
    with asyncio.Runner() as runner:
        changes = options.parse(param or [])
        given_tools = conversation.read_tools(tools) if tools else []
        with show.status(f"Opening {model or url}"):
            opened = (
                opening.open_server(url, model or "", key) if url else opening.open_local(model or "", _read_config)
            )
            chat_session = runner.run(opened)
        try:
            _configure(chat_session, system, given_tools, changes)
            if compare is not None:
                with show.status("Opening the second model"):
                    runner.run(chat_session.compare("" if compare == "base" else compare))
            view.note(f"Chat with {chat_session.client.name}. /help lists the commands.")
            reader = LineReader(history_file())
            loop = ChatLoop(chat_session, reader, view)
            loop.run(runner)
            reader.close()
        finally:
            runner.run(chat_session.close())
    if loop.failed and not sys.stdin.isatty():
        raise typer.Exit(1)


def _configure(chat_session: "Session", system: str, tools: list[dict[str, Any]], changes: dict[str, Any]) -> None:
    from tuneline.serve.chat import options

    chat_session.conversation.system, chat_session.conversation.tools = system, tools
    chat_session.options = options.update(chat_session.options, changes)


def _read_config(model: str) -> "ServeConfig":
    """Return the settings of a model argument, as `tuneline serve` reads them."""
    from tuneline.cli import serve

    return serve.read_config(model, {})
