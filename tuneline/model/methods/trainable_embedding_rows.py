"""`modules_to_save` and the embedding rows of new tokens, trained together with a low-rank adapter.

If embedding and head are tied, `peft` trains the matrix once, and it stays tied after saving, loading and merging. A
low-rank adapter on a tied matrix would not stay tied.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import nn

from tuneline.errors import RecipeError, did_you_mean

KEY = "method.modules_to_save"


def check(model: nn.Module, new_ids: tuple[int, ...], modules_to_save: list[str], adapted: Iterable[str] = ()) -> None:
    """Check that `peft` can train these modules and the rows of these tokens.

    Args:
        model: Base model; may be on the meta device.
        new_ids: Ids of the tokens added to the vocabulary.
        modules_to_save: Names of the modules to train fully, as in the recipe.
        adapted: Full names of the layers with an adapter.

    Raises:
        RecipeError: A module does not exist, is quantized or has an adapter, or single rows of it cannot be trained.
    """
    for name in _resolve(model, modules_to_save):
        module = model.get_submodule(name)
        if duplicate := next((layer for layer in adapted if layer == name or layer.startswith(f"{name}.")), None):
            raise RecipeError(
                f"{KEY}: {name} is in this list and {duplicate} has an adapter. Remove it from one of the two lists."
            )
        if any(not parameter.is_floating_point() for parameter in module.parameters()):
            raise RecipeError(f"{KEY}: {name} is quantized and cannot be trained fully. Remove it from the list.")
    for name in _partially_trained(model, new_ids, modules_to_save):
        if getattr(model.get_submodule(name), "bias", None) is not None:
            raise RecipeError(
                f"load.new_tokens: {name} has a bias, which peft omits when it trains single rows. Add {name} to {KEY}."
            )


def lora_config_options(model: nn.Module, new_ids: tuple[int, ...], modules_to_save: list[str]) -> dict[str, Any]:
    """Return the options of `LoraConfig` for these modules and tokens."""
    resolved = _resolve(model, modules_to_save)
    partial = _partially_trained(model, new_ids, modules_to_save)
    return {
        "modules_to_save": _shorten_for_peft(model, resolved) or None,
        "ensure_weight_tying": bool(first_tied(model, resolved)),
        "trainable_token_indices": {name: list(new_ids) for name in _shorten_for_peft(model, partial)} or None,
    }


def first_tied(model: nn.Module, names: Iterable[str] | str | None) -> str:
    """Return the first name that matches the tied embedding or head, or an empty string.

    Args:
        model: Base model; may be on the meta device.
        names: Names or suffixes of names; a string is a regular expression, like `target_modules` of `peft`.
    """
    tied = _embeddings(model) if is_tied(model) else []
    if isinstance(names, str):
        return next((full for full in tied if names != "all-linear" and re.fullmatch(names, full)), "")
    return next((name for name in names or () if any(full == name or full.endswith(f".{name}") for full in tied)), "")


def check_token_ids(model: nn.Module, folder: Path, indices: dict[str, list[int]] | list[int] | None) -> None:
    """Check that the vocabulary contains all tokens whose rows an adapter trained.

    Args:
        model: Base model with the recipe's new tokens; may be on the meta device.
        folder: Adapter folder.
        indices: `trainable_token_indices` of the adapter.

    Raises:
        RecipeError: A token id is outside of the vocabulary.
    """
    ids = [row for rows in indices.values() for row in rows] if isinstance(indices, dict) else indices or []
    config: Any = getattr(model, "config", None)
    size = config.get_text_config().vocab_size
    if ids and max(ids) >= size:
        raise RecipeError(
            f"load.adapters: {folder} trained the row of token {max(ids)}, but this model has {size} tokens. Add the "
            "tokens of its training to load.new_tokens, in the same order."
        )


def fully_trained_modules(model: nn.Module, names: list[str]) -> set[str]:
    """Return the full names of fully trained modules; a tied matrix appears under both names."""
    resolved = set(_resolve(model, names))
    return resolved | set(_embeddings(model)) if first_tied(model, resolved) else resolved


def untrained_embeddings(model: nn.Module, trained: list[str]) -> list[str]:
    """Return embedding and head if they are not among the trained modules."""
    untrained = [name for name in _embeddings(model) if name not in trained]
    return [] if is_tied(model) and len(untrained) < 2 else untrained


def is_tied(model: nn.Module) -> bool:
    """Return whether embedding and head share a matrix, by the config."""
    config: Any = getattr(model, "config", None)
    return len(_embeddings(model)) == 2 and bool(getattr(config.get_text_config(), "tie_word_embeddings", False))


def match_modules(model: nn.Module, names: Iterable[str], key: str, prefix: str = "") -> list[str]:
    """Return the full names of the modules that the recipe names by suffix.

    Args:
        model: Base model.
        names: Full names, or suffixes like `lm_head`.
        key: Recipe key for the error message.
        prefix: Only modules whose name starts with this prefix are matched.

    Raises:
        RecipeError: A name matches no module.
    """
    modules = [name for name, _ in model.named_modules() if name and name.startswith(prefix)]
    result: list[str] = []
    for requested in names:
        matches = [name for name in modules if name == requested or name.endswith(f".{requested}")]
        if not matches:
            suffixes = sorted({name.rpartition(".")[2] for name in modules} - {str(number) for number in range(1000)})
            raise RecipeError(
                f"{key}: {requested!r} is not a module of this {type(model).__name__}."
                f"{did_you_mean(requested, suffixes)} Known: {', '.join(suffixes)}."
            )
        result.extend(name for name in matches if name not in result)
    return result


def _resolve(model: nn.Module, modules_to_save: list[str]) -> list[str]:
    return match_modules(model, modules_to_save, KEY)


def _partially_trained(model: nn.Module, new_ids: tuple[int, ...], modules_to_save: list[str]) -> list[str]:
    """Return embedding and head if only their new rows are trained."""
    trained = _resolve(model, modules_to_save)
    if not new_ids or first_tied(model, trained):
        return []
    embeddings = _embeddings(model)
    return [name for name in (embeddings[:1] if is_tied(model) else embeddings) if name not in trained]


def _embeddings(model: nn.Module) -> list[str]:
    """Return the full names of embedding and head if the model has them."""
    getters = (getattr(model, "get_input_embeddings", None), getattr(model, "get_output_embeddings", None))
    layers = [layer for getter in getters if getter and (layer := getter()) is not None]
    names = [[name for name, module in model.named_modules() if module is layer] for layer in layers]
    return [matches[0] for matches in names if matches]


def _shorten_for_peft(model: nn.Module, names: list[str]) -> list[str]:
    """Return the last part of each name if `peft` matches nothing else by it: it matches by `str.endswith`."""
    modules = [name for name, _ in model.named_modules()]
    suffixes = {name: name.rpartition(".")[2] for name in names}
    safe = {suffix for suffix in suffixes.values() if {name for name in modules if name.endswith(suffix)} <= set(names)}
    return list(dict.fromkeys(suffix if suffix in safe else name for name, suffix in suffixes.items()))
