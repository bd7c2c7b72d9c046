"""`tuneline import`, and LlamaFactory configurations given to `plan`, `run` and `data preview`."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tuneline.cli import show
from tuneline.errors import RecipeError

if TYPE_CHECKING:
    from tuneline.config.llamafactory import ImportedConfig
    from tuneline.config.run_config import RunConfig


def add_commands(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("import")(import_)


def import_(
    file: Annotated[Path, typer.Argument(help="LlamaFactory configuration file.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Run configuration to write.")] = None,
    force: Annotated[bool, typer.Option(help="Overwrite the output file.")] = False,
) -> None:
    """Translate a LlamaFactory configuration into a recipe and report the differences; without -o, print the recipe."""
    from tuneline.config import llamafactory

    if output and output.exists() and not force:
        raise RecipeError(f"{output} already exists. Choose another --output, or pass --force to overwrite it.")
    imported = llamafactory.translate(file)
    _print_report(imported)
    if output is None:
        typer.echo(imported.to_yaml(Path.cwd()).rstrip())
        return
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(imported.to_yaml(output.parent), encoding="utf-8")
    typer.echo(f"Wrote {output}. Next: tuneline plan {output}", err=True)


def read_config(config: Path) -> "RunConfig":
    """Read a run configuration; translate a LlamaFactory configuration and print its report.

    Raises:
        RecipeError: One line per error, or per key without a counterpart.
    """
    from tuneline.config import llamafactory, load

    if not llamafactory.is_llamafactory_config(config):
        return load.load(config)
    imported = llamafactory.translate(config)
    _print_report(imported)
    return imported.config


def ensure_config_file(checked: "RunConfig") -> "RunConfig":
    """Return a configuration whose file a pipeline can start from: a translated one is written to the state root."""
    import yaml

    from tuneline import identity, state
    from tuneline.config import llamafactory

    if not llamafactory.is_llamafactory_config(checked.path):
        return checked
    text = yaml.safe_dump(checked.content, sort_keys=False, allow_unicode=True)
    path = state.folder("imported") / f"{checked.path.stem}-{identity.digest(checked.content)[:12]}.yaml"
    path.write_text(text, encoding="utf-8")
    return replace(checked, path=path)


def _print_report(imported: "ImportedConfig") -> None:
    console = show.stderr_console()
    console.print(f"{imported.path} is a LlamaFactory configuration.")
    for line in imported.report.lines():
        console.print(line, soft_wrap=True)
    console.print()
