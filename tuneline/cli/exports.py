"""`tuneline export`."""

import re
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from tuneline import identity, state
from tuneline.cli import train
from tuneline.errors import RecipeError

MODEL_REFERENCE = re.compile(r"^(?:models:/)?(?P<name>[\w.-]+)(?:[@/](?P<version>[\w-]+))?$")


def add_commands(app: typer.Typer) -> None:
    """File the command."""
    app.command()(export)


def export(
    model: Annotated[
        str, typer.Argument(help="A registered model (demo, demo@champion, models:/demo/2), or the folder of a model.")
    ],
    to: Annotated[Path | None, typer.Option(help="Folder for the export, in addition to the artifact.")] = None,
    push: Annotated[str | None, typer.Option(help="Repository of the hub, owner/name; see HF_TOKEN.")] = None,
    public: Annotated[bool, typer.Option(help="Make the repository public.")] = False,
    revision: Annotated[str, typer.Option(help="Branch to push to.")] = "main",
    message: Annotated[str | None, typer.Option(help="Message of the commit.")] = None,
    dtype: Annotated[str, typer.Option(help="keep, float32, bfloat16 or float16.")] = "keep",
    max_shard_size: Annotated[str | None, typer.Option(help="Largest file of weights, like 5GB.")] = None,
    modelfile: Annotated[str, typer.Option(help="Ollama's Modelfile: exact, limited or none.")] = "exact",
    cache: Annotated[bool, typer.Option(help="Take a finished export from the cache.")] = True,
) -> None:
    """Export a model: safetensors, tokenizer, model card, Modelfile, hashes; optionally push it to a Hub."""
    if not push and (public or revision != "main" or message):
        raise RecipeError("--public, --revision and --message are about a push. Give --push owner/name, or leave them.")
    recipe: dict[str, Any] = {"stage": "export", "model": _source(model), "dtype": dtype, "modelfile": modelfile}
    if max_shard_size:
        recipe["max_shard_size"] = max_shard_size
    if to:
        recipe["to"] = str(to.resolve())
    if push:
        recipe["push"] = {"repo_id": push, "private": not public, "revision": revision, "commit_message": message}
    train.run(_written(recipe), cache=cache)


def _source(model: str) -> dict[str, str]:
    """Tell what a name means: a folder that is there, else a registered model.

    Raises:
        RecipeError: It is a recipe, or nothing that can be meant.
    """
    path = Path(model)
    if path.suffix in (".yaml", ".yml"):
        raise RecipeError(f"{model}: is a file; `tuneline run {model}` runs it if it is a recipe with stage: export.")
    if path.is_dir():
        return {"type": "directory", "path": str(path.resolve())}
    found = MODEL_REFERENCE.match(model)
    if not found:
        raise RecipeError(
            f"{model!r} is neither a folder that is there nor the name of a registered model. Give a folder, or a name "
            "like demo@champion; `tuneline models` lists them."
        )
    return {"type": "registered", "name": found["name"], "version": found["version"] or "champion"}


def _written(recipe: dict[str, Any]) -> Path:
    """Write the run configuration of a command down, so that it can be run again."""
    content = {"run_name": "export-{date}-{time}", "parameters": {"recipe": recipe}}
    path = state.folder("exports") / f"{identity.digest(recipe)[:12]}.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return path
