"""`tuneline data`: list and import dataset registries, and preview the rows of a recipe."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tuneline.cli import preview, show
from tuneline.errors import RecipeError

if TYPE_CHECKING:
    from tuneline.config.datasets.llamafactory_dataset_info import ImportedDatasets

HUB_KEYS = ("subset", "folder", "split", "revision")
"""Keys that select a part of a Hub repository."""


def add_commands(app: typer.Typer) -> None:
    """Add the commands to the application."""
    data = typer.Typer(help="List, import and preview datasets.", no_args_is_help=True)
    data.command("import")(import_)
    data.command("list")(list_)
    data.command("preview")(preview.preview)
    app.add_typer(data, name="data")


def import_(
    file: Annotated[Path, typer.Argument(help="LlamaFactory's dataset_info.json.")],
    output: Annotated[Path, typer.Option(help="Dataset registry to write.")] = Path("datasets.yaml"),
    force: Annotated[bool, typer.Option(help="Overwrite the output file.")] = False,
    as_json: show.JsonOption = False,
) -> None:
    """Translate a dataset_info.json into a dataset registry; reports skipped entries with the reason."""
    from tuneline.config.datasets import dataset_registry, llamafactory_dataset_info

    if output.exists() and not force:
        raise RecipeError(f"{output} already exists. Choose another --output, or pass --force to overwrite it.")
    imported = llamafactory_dataset_info.read(file)
    if not imported.entries:
        raise RecipeError(f"{file} has no usable entry: {_first_reason(imported)}. No file was written.")
    output.parent.mkdir(parents=True, exist_ok=True)
    dataset_registry.write(dataset_registry.DatasetRegistry(file, imported.entries, imported.left_out), output)
    translated = [
        _row(name, entry) | {"remark": "; ".join(imported.notes[name])} for name, entry in imported.entries.items()
    ]
    skipped = [{"name": name, "remark": f"skipped: {reason}"} for name, reason in imported.left_out.items()]
    show.print_rows(
        f"Datasets of {file}", translated + skipped, ("name", "place", "format", "remark"), as_json=as_json, empty=""
    )
    if not as_json:
        show.console().print(
            f"Wrote {len(translated)} entries to {output}; skipped {len(skipped)}. Columns that an entry does not "
            "name have the default names of the format; LlamaFactory ignores some of those.",
            soft_wrap=True,
        )


def list_(
    file: Annotated[Path, typer.Argument(help="Dataset registry, or a dataset_info.json.")] = Path(
        "configs/datasets.yaml"
    ),
    as_json: show.JsonOption = False,
) -> None:
    """List the datasets of a registry."""
    from tuneline.config.datasets import dataset_registry

    registry = dataset_registry.read(file)
    rows = [_row(name, entry) for name, entry in registry.entries.items()]
    optional = [key for key in ("columns", "tags", "max_rows") if any(row[key] for row in rows)]
    names = ("name", "place", "format", *optional)
    show.print_rows(f"Datasets of {file}", rows, names, as_json=as_json, empty=f"{file} has no dataset.")
    if registry.left_out and not as_json:
        show.console().print(f"{len(registry.left_out)} entries skipped; `tuneline data import` shows the reasons.")


def _row(name: str, entry: dict[str, Any]) -> dict[str, Any]:
    location = entry.get("hub") or min(entry["path"], os.path.relpath(entry["path"]), key=len)
    return {
        "name": name,
        "place": " · ".join([location, *(str(entry[key]) for key in HUB_KEYS if entry.get(key))]),
        "format": entry.get("format", "auto"),
        "columns": [f"{field}: {column}" for field, column in (entry.get("columns") or {}).items()],
        "tags": [f"{field}: {column}" for field, column in (entry.get("tags") or {}).items()],
        "max_rows": entry.get("max_rows"),
    }


def _first_reason(imported: "ImportedDatasets") -> str:
    return next((f"{name} {reason}" for name, reason in imported.left_out.items()), "it has no entries")
