"""Write the reference of the command line, `docs/cli.md`, from the commands themselves.

python scripts/cli_reference.py
"""

import html
import re
from pathlib import Path

import typer
from typer.cli import get_docs_for_click
from typer.core import TyperCommand, TyperGroup

from tuneline.cli.app import app

PAGE = Path("docs/cli.md")
INTRODUCTION = """# Command line

`scripts/cli_reference.py` generates this page from the help texts of the commands; `tuneline COMMAND --help` prints the
same texts.

| exit status | meaning |
|---:|---|
| 0 | success |
| 1 | the command ran and the result is negative: a problem (`doctor`), a refusal (`promote`), a failed cell or run |
| 2 | an error in the recipe, the data, the environment or the options; also SIGTERM. The message is on standard error |
| 130 | Ctrl-C |

"""


def main() -> None:
    """Write the page."""
    PAGE.write_text(render(), encoding="utf-8")


def render() -> str:
    """Return the page: a table of all commands, then one section per command."""
    commands = list(leaves(typer.main.get_command(app), "tuneline"))
    rows = [f"| [`{name}`](#{name.replace(' ', '-')}) | {first_paragraph(command)} |" for name, command in commands]
    sections = [section(name, command) for name, command in commands]
    return INTRODUCTION + "\n".join(["| command | description |", "|---|---|", *rows, "", *sections]).rstrip() + "\n"


def leaves(command: TyperCommand | TyperGroup, name: str) -> list[tuple[str, TyperCommand]]:
    """Return every command that is not a group, with its full name, in the order of the help."""
    if not isinstance(command, TyperGroup):
        return [(name, command)]
    return [leaf for child in command.commands.values() for leaf in leaves(child, f"{name} {child.name}")]


def first_paragraph(command: TyperCommand) -> str:
    """Return the summary of a command on one line, fit for a cell of a table."""
    return " ".join((command.help or "").split("\n\n")[0].split()).replace("|", r"\|")


def section(name: str, command: TyperCommand) -> str:
    """Return one command as Markdown, without the option that all commands share."""
    prefix = name.rpartition(" ")[0]
    text = get_docs_for_click(obj=command, ctx=typer.Context(command), indent=1, call_prefix=prefix)
    text = re.sub(r"^\* `--help`: .*\n", "", text, flags=re.MULTILINE)
    text = re.sub(r"^\*\*Options\*\*:\n\n(?=\n|\Z)", "", text, flags=re.MULTILINE)
    return re.sub(r"\n{3,}", "\n\n", html.unescape(text)).rstrip() + "\n"


if __name__ == "__main__":
    main()
