"""`tuneline data`: descriptions of data sets, listed and imported; and a look at a recipe's rows."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from tuneline.cli import preview, show
from tuneline.config.datasets import dataset_registry, llamafactory_dataset_info
from tuneline.errors import RecipeError

HUB_KEYS = ("subset", "folder", "split", "revision")
"""What says which part of a hub's repository is meant."""


def add_commands(app: typer.Typer) -> None:
    """File the commands under one name."""
    data = typer.Typer(help="Describe data sets, and look at what the model will see of them.", no_args_is_help=True)
    data.command("import")(import_)
    data.command("list")(list_)
    data.command("preview")(preview.preview)
    app.add_typer(data, name="data")


def import_(
    file: Annotated[Path, typer.Argument(help="LlamaFactory's dataset_info.json.")],
    output: Annotated[Path, typer.Option(help="File of descriptions to write.")] = Path("datasets.yaml"),
    force: Annotated[bool, typer.Option(help="Replace the file.")] = False,
    as_json: show.JsonOption = False,
) -> None:
    """Translate a dataset_info.json into dataset entries and report what was left out, with the reason."""
    if output.exists() and not force:
        raise RecipeError(f"{output}: is there already. Give another --output, or --force to replace it.")
    found = llamafactory_dataset_info.read(file)
    if not found.entries:
        raise RecipeError(f"{file}: holds nothing that can be used: {_first_reason(found)}. Nothing was written.")
    output.parent.mkdir(parents=True, exist_ok=True)
    dataset_registry.write(dataset_registry.DatasetRegistry(file, found.entries, found.left_out), output)
    taken = [_row(name, entry) | {"remark": "; ".join(found.notes[name])} for name, entry in found.entries.items()]
    left = [{"name": name, "remark": f"left out: {reason}"} for name, reason in found.left_out.items()]
    show.print_rows(
        f"Data sets of {file}", taken + left, ("name", "place", "format", "remark"), as_json=as_json, empty=""
    )
    if not as_json:
        show.console().print(
            f"Wrote {len(taken)} descriptions to {output}; {len(left)} left out. Columns that an entry does not name "
            "are read under the format's own names; LlamaFactory skips some of those.",
            soft_wrap=True,
        )


def list_(
    file: Annotated[Path, typer.Argument(help="File of descriptions, or a dataset_info.json.")] = Path(
        "configs/datasets.yaml"
    ),
    as_json: show.JsonOption = False,
) -> None:
    """List the data sets that a file describes."""
    found = dataset_registry.read(file)
    rows = [_row(name, entry) for name, entry in found.entries.items()]
    used = [key for key in ("columns", "tags", "max_rows") if any(row[key] for row in rows)]
    names = ("name", "place", "format", *used)
    show.print_rows(f"Data sets of {file}", rows, names, as_json=as_json, empty=f"{file} describes no data set.")
    if found.left_out and not as_json:
        show.console().print(f"{len(found.left_out)} entries cannot be used: `tuneline data import` tells why.")


def _row(name: str, entry: dict[str, Any]) -> dict[str, Any]:
    place = entry.get("hub") or min(entry["path"], os.path.relpath(entry["path"]), key=len)
    return {
        "name": name,
        "place": " · ".join([place, *(str(entry[key]) for key in HUB_KEYS if entry.get(key))]),
        "format": entry.get("format", "auto"),
        "columns": [f"{ours}: {theirs}" for ours, theirs in (entry.get("columns") or {}).items()],
        "tags": [f"{ours}: {theirs}" for ours, theirs in (entry.get("tags") or {}).items()],
        "max_rows": entry.get("max_rows"),
    }


def _first_reason(found: llamafactory_dataset_info.ImportedDatasets) -> str:
    return next((f"{name} {reason}" for name, reason in found.left_out.items()), "it has no entries")
