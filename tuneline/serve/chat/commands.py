"""Commands of a chat, such as `/params temperature=0.2`."""

import shlex
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tuneline.errors import NotFoundError, RecipeError
from tuneline.serve.chat import conversation, options
from tuneline.serve.chat.session import Session

Action = Literal["", "answer", "exit"]


@dataclass(frozen=True)
class Outcome:
    """The result of a command: a text to print, and what the chat does next."""

    text: str = ""
    action: Action = ""


Run = Callable[[Session, str], Awaitable[Outcome]]


@dataclass(frozen=True)
class Command:
    """A command with its arguments and its help."""

    arguments: str
    help: str
    run: Run


def is_command(line: str) -> bool:
    """Return whether a line is a command; a prompt that begins with a slash is written with two."""
    return line.startswith("/") and not line.startswith("//")


def as_prompt(line: str) -> str:
    """Return the prompt of a line that is not a command."""
    return line[1:] if line.startswith("//") else line


async def execute(line: str, session: Session) -> Outcome:
    """Execute a command.

    Raises:
        NotFoundError: The command does not exist.
        TunelineError: Its arguments are invalid.
    """
    name, _, rest = line[1:].strip().partition(" ")
    if name not in COMMANDS:
        raise NotFoundError.among("command", f"/{name}", [f"/{known}" for known in COMMANDS])
    return await COMMANDS[name].run(session, rest.strip())


async def _help(session: Session, rest: str) -> Outcome:
    rows = [(f"/{name} {command.arguments}".rstrip(), command.help) for name, command in COMMANDS.items()]
    width = max(len(usage) for usage, _ in rows)
    lines = [f"{usage:{width}}  {text}" for usage, text in rows]
    lines += [
        "",
        "A backslash at the end of a line continues the prompt on the next line.",
        "A prompt that begins with a slash is written with two. Ctrl-C stops an answer; twice, it exits.",
    ]
    return Outcome("\n".join(lines))


async def _system(session: Session, rest: str) -> Outcome:
    if not rest:
        return Outcome(f"System message: {session.conversation.system or 'none'}")
    session.conversation.system = "" if rest == "off" else rest
    return Outcome("System message removed." if rest == "off" else "System message set.")


async def _params(session: Session, rest: str) -> Outcome:
    if rest:
        session.options = options.update(session.options, options.parse(_split(rest)))
    return Outcome(f"Parameters: {options.describe(session.options)}")


async def _tools(session: Session, rest: str) -> Outcome:
    chat = session.conversation
    if rest:
        chat.tools = [] if rest == "off" else conversation.read_tools(Path(rest).expanduser())
    return Outcome(f"Tools: {', '.join(conversation.tool_names(chat.tools)) or 'none'}")


async def _compare(session: Session, rest: str) -> Outcome:
    if rest == "off":
        await session.end_comparison()
        return Outcome("Comparison ended.")
    await session.compare(rest)
    assert session.other
    return Outcome(f"Comparing {session.client.name} with {session.other.name}; /compare off ends the comparison.")


async def _regenerate(session: Session, rest: str) -> Outcome:
    if not session.conversation.remove_answer():
        return Outcome(conversation.NO_TURNS)
    return Outcome(action="answer")


async def _undo(session: Session, rest: str) -> Outcome:
    return Outcome("Removed the last prompt and its answer." if session.conversation.undo() else conversation.NO_TURNS)


async def _history(session: Session, rest: str) -> Outcome:
    return Outcome(session.conversation.history())


async def _save(session: Session, rest: str) -> Outcome:
    if not rest:
        raise RecipeError("/save needs a file. Give its name, such as /save chats.jsonl.")
    num_rows = session.conversation.save(Path(rest).expanduser())
    return Outcome(f"Saved the conversation to {rest}, which now has {num_rows} row{'s' if num_rows > 1 else ''}.")


async def _reset(session: Session, rest: str) -> Outcome:
    session.conversation.reset()
    return Outcome("Started a new conversation.")


async def _exit(session: Session, rest: str) -> Outcome:
    return Outcome(action="exit")


def _split(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise RecipeError(f"{text!r} cannot be split into arguments: {error}. Close the quotes.") from None


COMMANDS: dict[str, Command] = {
    "help": Command("", "Show this help.", _help),
    "system": Command("[TEXT|off]", "Show, set or remove the system message.", _system),
    "params": Command("[NAME=VALUE ...]", "Show or set parameters; NAME= resets one.", _params),
    "tools": Command("[FILE|off]", "Show, set or remove the tools, a JSON file of functions.", _tools),
    "compare": Command("[MODEL|off]", "Show the answers of a second model too; default: the base model.", _compare),
    "regenerate": Command("", "Answer the last prompt again.", _regenerate),
    "undo": Command("", "Remove the last prompt and its answer.", _undo),
    "history": Command("", "Show the conversation.", _history),
    "save": Command("FILE", "Add the conversation to a JSONL file, as a training row in openai format.", _save),
    "reset": Command("", "Start a new conversation; system message, tools and parameters stay.", _reset),
    "exit": Command("", "Leave the chat.", _exit),
}
