"""`tuneline export`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from tuneline.cli import show, train
from tuneline.errors import RecipeError


def add_commands(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command()(export)


def export(
    model: Annotated[
        str,
        typer.Argument(
            help="A registered model (demo, demo@champion, models:/demo/2), or a folder that holds a model."
        ),
    ],
    to: Annotated[
        Path | None, typer.Option(help="Folder that also receives the export; the artifact stays in the store.")
    ] = None,
    push: Annotated[str | None, typer.Option(help="Hub repository to push to, owner/name; needs HF_TOKEN.")] = None,
    public: Annotated[bool, typer.Option(help="Make the repository public.")] = False,
    revision: Annotated[str, typer.Option(help="Branch that receives the push.")] = "main",
    message: Annotated[str | None, typer.Option(help="Commit message.")] = None,
    dtype: Annotated[str, typer.Option(help="Data type of the weights: keep, float32, bfloat16 or float16.")] = "keep",
    max_shard_size: Annotated[str | None, typer.Option(help="Maximum size of a weight file, such as 5GB.")] = None,
    modelfile: Annotated[str, typer.Option(help="Ollama Modelfile: exact, limited or none.")] = "exact",
    gguf: Annotated[
        str, typer.Option(help="Also write a GGUF file for llama.cpp: none, f16, q8_0 or q4_k_m.")
    ] = "none",
    cache: Annotated[bool, typer.Option(help="Reuse a cached export.")] = True,
    verbose: show.VerboseOption = False,
) -> None:
    """Export a model: safetensors, tokenizer, model card, Modelfile, checksums, GGUF; optionally push it to the Hub."""
    if not push and (public or revision != "main" or message):
        raise RecipeError("--public, --revision and --message require --push. Add --push owner/name, or remove them.")
    recipe: dict[str, Any] = {"stage": "export", "model": _source(model), "dtype": dtype, "modelfile": modelfile}
    if gguf != "none":
        recipe["gguf"] = gguf
    if max_shard_size:
        recipe["max_shard_size"] = max_shard_size
    if to:
        recipe["to"] = str(to.resolve())
    if push:
        recipe["push"] = {"repo_id": push, "private": not public, "revision": revision, "commit_message": message}
    train.run(_write_config(recipe), cache=cache, verbose=verbose)


def _source(model: str) -> dict[str, str]:
    """Parse a model argument: an existing folder, else the name of a registered model.

    Raises:
        RecipeError: It is a recipe, or neither of the two.
    """
    from tuneline.config.parsing import model_reference

    path = Path(model)
    if path.suffix in (".yaml", ".yml"):
        raise RecipeError(
            f"{model} is a YAML file, expected a model. Run a recipe with stage: export by `tuneline run {model}`."
        )
    if path.is_dir():
        return {"type": "directory", "path": str(path.resolve())}
    registered = model_reference.parse_registered(model)
    if registered is None:
        raise RecipeError(
            f"{model!r} is neither a folder nor a valid name of a registered model. Give an existing folder, or a name "
            "such as demo@champion; `tuneline models` lists the names."
        )
    return registered.model_dump()


def _write_config(recipe: dict[str, Any]) -> Path:
    """Write the run configuration of the command to the state root, so that it can be run again."""
    import yaml

    from tuneline import identity, state

    content = {"run_name": "export-{date}-{time}", "parameters": {"recipe": recipe}}
    path = state.folder("exports") / f"{identity.digest(recipe)[:12]}.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return path
