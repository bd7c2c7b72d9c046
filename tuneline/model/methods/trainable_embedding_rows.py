"""Modules of the base that are trained whole beside a low-rank adapter, and rows of new tokens that are trained alone.

Embedding and head may share one matrix. Then peft trains it once, and both stay the same matrix after saving, reading
and merging; a low-rank adapter on it would not.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import nn

from tuneline.errors import RecipeError, did_you_mean

KEY = "method.modules_to_save"


def check(model: nn.Module, new_ids: tuple[int, ...], whole: list[str], adapted: Iterable[str] = ()) -> None:
    """Refuse modules that do not exist, have an adapter too or are quantized, and new rows that peft gets wrong.

    Args:
        model: Base model, or its shape.
        new_ids: Token ids that were added to the vocabulary.
        whole: Names of modules to train whole, as in the recipe.
        adapted: Full names of the layers that get an adapter.

    Raises:
        RecipeError: One of these.
    """
    for name in _resolve(model, whole):
        module = model.get_submodule(name)
        if twice := next((layer for layer in adapted if layer == name or layer.startswith(f"{name}.")), None):
            raise RecipeError(f"{KEY}: {twice} has an adapter too. Take {name} out of one of the two lists.")
        if any(not parameter.is_floating_point() for parameter in module.parameters()):
            raise RecipeError(f"{KEY}: {name} is quantized and cannot be trained whole. Take it out of the list.")
    for name in _partially_trained(model, new_ids, whole):
        if getattr(model.get_submodule(name), "bias", None) is not None:
            raise RecipeError(
                f"load.new_tokens: {name} has a bias, which peft leaves out where it trains single rows. Put {name} "
                f"into {KEY}."
            )


def lora_config_options(model: nn.Module, new_ids: tuple[int, ...], whole: list[str]) -> dict[str, Any]:
    """Return what a `LoraConfig` is told of these."""
    resolved = _resolve(model, whole)
    alone = _partially_trained(model, new_ids, whole)
    return {
        "modules_to_save": _shorten_for_peft(model, resolved) or None,
        "ensure_weight_tying": bool(first_tied(model, resolved)),
        "trainable_token_indices": {name: list(new_ids) for name in _shorten_for_peft(model, alone)} or None,
    }


def first_tied(model: nn.Module, names: Iterable[str] | str | None) -> str:
    """Return the first name that is embedding or head of a model that has one matrix for both, or an empty string.

    Args:
        model: Base model, or its shape.
        names: Names or ends of names; a text is a regular expression, as in `target_modules` of plain peft.
    """
    tied = _embeddings(model) if is_tied(model) else []
    if isinstance(names, str):
        return next((full for full in tied if names != "all-linear" and re.fullmatch(names, full)), "")
    return next((name for name in names or () if any(full == name or full.endswith(f".{name}") for full in tied)), "")


def check_token_ids(model: nn.Module, folder: Path, indices: dict[str, list[int]] | list[int] | None) -> None:
    """Refuse an adapter that trained rows of tokens which the vocabulary does not have.

    Args:
        model: Base model, or its shape, with the recipe's new tokens.
        folder: The adapter.
        indices: Its `trainable_token_indices`.

    Raises:
        RecipeError: A row is beyond the last.
    """
    ids = [row for rows in indices.values() for row in rows] if isinstance(indices, dict) else indices or []
    config: Any = getattr(model, "config", None)
    size = config.get_text_config().vocab_size
    if ids and max(ids) >= size:
        raise RecipeError(
            f"load.adapters: {folder} trained the row of token {max(ids)}, and this model has {size} tokens. Add the "
            "tokens that it was trained with to load.new_tokens, in the same order."
        )


def fully_trained_modules(model: nn.Module, names: list[str]) -> set[str]:
    """Return the full names of what is trained whole; a matrix of two names under both."""
    resolved = set(_resolve(model, names))
    return resolved | set(_embeddings(model)) if first_tied(model, resolved) else resolved


def untrained_embeddings(model: nn.Module, trained: list[str]) -> list[str]:
    """Return embedding and head, as far as they are not among the modules that are trained."""
    left = [name for name in _embeddings(model) if name not in trained]
    return [] if is_tied(model) and len(left) < 2 else left


def is_tied(model: nn.Module) -> bool:
    """Tell whether embedding and head share a matrix; on the meta device the config says so."""
    config: Any = getattr(model, "config", None)
    return len(_embeddings(model)) == 2 and bool(getattr(config.get_text_config(), "tie_word_embeddings", False))


def match_modules(model: nn.Module, names: Iterable[str], key: str, inside: str = "") -> list[str]:
    """Return the full names of modules that the recipe names by their ends.

    Args:
        model: Where to look.
        names: A full name, or the end of one, like `lm_head`.
        key: Key of the recipe, for the error.
        inside: What the names that are looked through begin with.

    Raises:
        RecipeError: A name matches no module.
    """
    modules = [name for name, _ in model.named_modules() if name and name.startswith(inside)]
    found: list[str] = []
    for wanted in names:
        matches = [name for name in modules if name == wanted or name.endswith(f".{wanted}")]
        if not matches:
            ends = sorted({name.rpartition(".")[2] for name in modules} - {str(number) for number in range(1000)})
            raise RecipeError(
                f"{key}: {wanted!r} is no module of this {type(model).__name__}.{did_you_mean(wanted, ends)} Known: "
                f"{', '.join(ends)}."
            )
        found.extend(name for name in matches if name not in found)
    return found


def _resolve(model: nn.Module, whole: list[str]) -> list[str]:
    return match_modules(model, whole, KEY)


def _partially_trained(model: nn.Module, new_ids: tuple[int, ...], whole: list[str]) -> list[str]:
    """Return embedding and head, as far as their new rows are to be trained and they are not trained whole."""
    trained = _resolve(model, whole)
    if not new_ids or first_tied(model, trained):
        return []
    embeddings = _embeddings(model)
    return [name for name in (embeddings[:1] if is_tied(model) else embeddings) if name not in trained]


def _embeddings(model: nn.Module) -> list[str]:
    """Return the full names of embedding and head, as far as there are any."""
    getters = (getattr(model, "get_input_embeddings", None), getattr(model, "get_output_embeddings", None))
    wanted = [getter() for getter in getters if getter]
    names = [[name for name, module in model.named_modules() if module is part] for part in wanted if part is not None]
    return [found[0] for found in names if found]


def _shorten_for_peft(model: nn.Module, names: list[str]) -> list[str]:
    """Return the last parts of names where peft finds nothing else by them: to it, `norm` is any name that ends so."""
    modules = [name for name, _ in model.named_modules()]
    ends = {name: name.rpartition(".")[2] for name in names}
    safe = {end for end in ends.values() if {name for name in modules if name.endswith(end)} <= set(names)}
    return list(dict.fromkeys(end if end in safe else name for name, end in ends.items()))
