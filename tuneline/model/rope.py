"""Positions beyond those that a model was trained on: the rotary embedding is stretched, and what is too long refused.

By `config.rope_parameters`, before the model is built. What is there is kept: setting `rope_scaling` instead, as was
done with older versions, loses `rope_theta`. Windows of sliding attention see near positions only and stay as they are.
"""

import math
from collections.abc import Iterator
from typing import Any

from tuneline.config.sections.load import RopeScaling
from tuneline.errors import RecipeError

LLAMA3_DEFAULTS = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
"""Of Llama 3.1 (Grattafiori et al. 2024, arXiv:2407.21783), whose scaling this is."""

UNSCALED = "default"
SCALING_TYPES = ("linear", "dynamic", "yarn", "llama3")

UNLIMITED_ARCHITECTURES = ("inkling_text", "inkling2_text", "jamba", "kimi_linear", "nemotron_h", "rwkv", "zamba")
"""Architectures whose state or attention knows no positions; their `max_position_embeddings` bounds nothing."""


def scale_rope(config: Any, scaling: RopeScaling, max_length: int) -> str:
    """Stretch the positions of a model, in its config.

    Args:
        config: The model's, before it is built; it is changed, and saved with the model.
        scaling: The recipe's.
        max_length: Longest row, `tokenize.max_length`.

    Returns:
        A sentence that says what was done.

    Raises:
        RecipeError: There is nothing to stretch, or no way to.
    """
    text = config.get_text_config(decoder=True)
    entries = list(_scalable_parameters(text))
    if not entries:
        raise RecipeError(
            f"load.rope_scaling: {text.model_type} has no rotary positions that could be stretched. Leave rope_scaling "
            f"out{_length_advice(text)}."
        )
    _check_rope_type(entries, scaling.rope_type)
    old = int(_num_positions(text) or 0)
    factor = _factor(scaling, old, max_length)
    original = int(text.max_position_embeddings)
    for entry in entries:
        _scale_parameters(entry, scaling.rope_type, factor, original)
    if scaling.rope_type != "dynamic":  # which begins to stretch where these end
        text.max_position_embeddings = int(original * factor)
    return f"rotary positions stretched by {factor:g} ({scaling.rope_type}), from {old} to {int(old * factor)}"


def check_max_length(config: Any, max_length: int) -> None:
    """Refuse rows that are longer than the model has positions for.

    Raises:
        RecipeError: They are.
    """
    text = config.get_text_config(decoder=True)
    limit = _num_positions(text)
    if limit is None or max_length <= limit:
        return
    advice = "set load.rope_scaling" if any(_scalable_parameters(text)) else f"{text.model_type} cannot be stretched"
    raise RecipeError(
        f"tokenize.max_length: {max_length}, and the model has {int(limit)} positions. Lower it to {int(limit)}, or "
        f"{advice}."
    )


def _scalable_parameters(text: Any) -> Iterator[dict[str, Any]]:
    """Yield the rotary parameters that reach over the whole row: one, or one for each type of layer that does."""
    parameters = getattr(text, "rope_parameters", None) or {}
    types = text.nested_rope_parameter_keys(parameters)
    if not types and parameters:
        yield parameters
    for name in types:
        if parameters[name] is not None and not any(word in name for word in ("sliding", "chunked")):
            yield parameters[name]


def _num_positions(text: Any) -> float | None:
    """Return how many positions a model has; None where it has no limit."""
    told = getattr(text, "max_position_embeddings", None)
    if not told or told < 0 or text.model_type in UNLIMITED_ARCHITECTURES:
        return None
    dynamic = [entry["factor"] for entry in _scalable_parameters(text) if _rope_type(entry) == "dynamic"]
    return float(told * max(dynamic, default=1.0))


def _rope_type(entry: dict[str, Any]) -> str:
    return str(entry.get("rope_type") or entry.get("type") or UNSCALED)


def _check_rope_type(entries: list[dict[str, Any]], wanted: str) -> None:
    """Refuse to take one stretching from a model that was trained with it, and to give it another."""
    for other in sorted({_rope_type(entry) for entry in entries} - {UNSCALED, wanted}):
        way_out = f"Set rope_type: {other}." if other in SCALING_TYPES else "Leave rope_scaling out."
        raise RecipeError(
            f"load.rope_scaling.rope_type: {wanted}, and the model was trained with positions of the type {other!r}, "
            f"which would be lost. {way_out}"
        )


def _factor(scaling: RopeScaling, old: int, max_length: int) -> float:
    if scaling.factor is None:
        if max_length <= old:
            raise RecipeError(
                f"load.rope_scaling: tokenize.max_length is {max_length}, and the model has {old} positions, so there "
                "is nothing to stretch. Leave rope_scaling out, or give a factor."
            )
        return float(math.ceil(max_length / old))
    if max_length > old * scaling.factor:
        raise RecipeError(
            f"load.rope_scaling.factor: {scaling.factor:g} makes {int(old * scaling.factor)} positions of {old}, and "
            f"tokenize.max_length is {max_length}. Set it to {math.ceil(max_length / old)}, or leave it out."
        )
    return scaling.factor


def _scale_parameters(entry: dict[str, Any], kind: str, factor: float, positions: int) -> None:
    """Change one set of rotary parameters; one that was stretched the same way before is stretched further."""
    entry.pop("type", None)
    entry["factor"] = entry.get("factor", 1.0) * factor
    entry["rope_type"] = kind
    if kind in ("yarn", "llama3"):
        entry.setdefault("original_max_position_embeddings", positions)
    if kind == "llama3":
        entry.update({name: value for name, value in LLAMA3_DEFAULTS.items() if name not in entry})


def _length_advice(text: Any) -> str:
    limit = _num_positions(text)
    return f", and set tokenize.max_length to {int(limit)} at most" if limit else ""
