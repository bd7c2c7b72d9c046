"""`tuneline import`, and configurations of LlamaFactory where `plan`, `run` and `data preview` expect one of ours."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
import yaml

from tuneline import identity, state
from tuneline.cli import show
from tuneline.config import llamafactory, load
from tuneline.config.run_config import RunConfig
from tuneline.errors import RecipeError


def add_commands(app: typer.Typer) -> None:
    """File the command."""
    app.command("import")(import_)


def import_(
    file: Annotated[Path, typer.Argument(help="Configuration file of LlamaFactory.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Run configuration to write.")] = None,
    force: Annotated[bool, typer.Option(help="Replace the file.")] = False,
) -> None:
    """Translate a LlamaFactory configuration into a recipe and report differences; without -o, print the recipe."""
    if output and output.exists() and not force:
        raise RecipeError(f"{output}: is there already. Give another --output, or --force to replace it.")
    imported = llamafactory.translate(file)
    _print_report(imported)
    if output is None:
        typer.echo(imported.to_yaml(Path.cwd()).rstrip())
        return
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(imported.to_yaml(output.parent), encoding="utf-8")
    typer.echo(f"Wrote {output}. Next: tuneline plan {output}", err=True)


def read_config(config: Path) -> RunConfig:
    """Read a run configuration; one of LlamaFactory is translated, and its report told.

    Raises:
        RecipeError: One line for each mistake, or for each key that has no counterpart.
    """
    if not llamafactory.is_llamafactory_config(config):
        return load.load(config)
    imported = llamafactory.translate(config)
    _print_report(imported)
    return imported.config


def ensure_config_file(checked: RunConfig) -> RunConfig:
    """Return a run configuration that lies in a file of ours, which pipelines are started with."""
    if not llamafactory.is_llamafactory_config(checked.path):
        return checked
    text = yaml.safe_dump(checked.content, sort_keys=False, allow_unicode=True)
    path = state.folder("imported") / f"{checked.path.stem}-{identity.digest(checked.content)[:12]}.yaml"
    path.write_text(text, encoding="utf-8")
    return replace(checked, path=path)


def _print_report(imported: llamafactory.ImportedConfig) -> None:
    console = show.stderr_console()
    console.print(f"{imported.path} is a configuration of LlamaFactory.")
    for line in imported.report.lines():
        console.print(line, soft_wrap=True)
    console.print()
