"""RoPE scaling: extend the context length of a model, and reject rows that are too long.

It changes `config.rope_parameters` before the model is built and keeps the existing values: setting `rope_scaling`, as
in older versions of transformers, loses `rope_theta`. Sliding windows attend to near positions only and are not scaled.
"""

import math
from collections.abc import Iterator
from typing import Any

from tuneline.config.sections.load import RopeScaling
from tuneline.errors import RecipeError

LLAMA3_DEFAULTS = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
"""Values of Llama 3.1 (Grattafiori et al. 2024, arXiv:2407.21783)."""

UNSCALED = "default"
SCALING_TYPES = ("linear", "dynamic", "yarn", "llama3")

UNLIMITED_ARCHITECTURES = ("inkling_text", "inkling2_text", "jamba", "kimi_linear", "nemotron_h", "rwkv", "zamba")
"""Architectures without position information; their `max_position_embeddings` is not a limit."""


def scale_rope(config: Any, scaling: RopeScaling, max_length: int) -> str:
    """Scale the rotary positions of a model, in its config.

    Args:
        config: Model config before the model is built; it is modified and saved with the model.
        scaling: `load.rope_scaling` of the recipe.
        max_length: `tokenize.max_length`.

    Returns:
        A description of the scaling.

    Raises:
        RecipeError: No scaling is needed, or it is not supported.
    """
    text_config = config.get_text_config(decoder=True)
    entries = list(_scalable_parameters(text_config))
    if not entries:
        raise RecipeError(
            f"load.rope_scaling: {text_config.model_type} has no rotary positions that could be scaled. Remove "
            f"rope_scaling{_length_advice(text_config)}."
        )
    _check_rope_type(entries, scaling.rope_type)
    old = int(_num_positions(text_config) or 0)
    factor = _factor(scaling, old, max_length)
    original = int(text_config.max_position_embeddings)
    for entry in entries:
        _scale_parameters(entry, scaling.rope_type, factor, original)
    if scaling.rope_type != "dynamic":  # dynamic scaling starts beyond these positions
        text_config.max_position_embeddings = int(original * factor)
    return f"rotary positions scaled by {factor:g} ({scaling.rope_type}), from {old} to {int(old * factor)}"


def check_max_length(config: Any, max_length: int) -> None:
    """Check that rows do not exceed the positions of the model.

    Raises:
        RecipeError: `max_length` exceeds the positions.
    """
    text_config = config.get_text_config(decoder=True)
    limit = _num_positions(text_config)
    if limit is None or max_length <= limit:
        return
    advice = (
        "set load.rope_scaling"
        if any(_scalable_parameters(text_config))
        else f"{text_config.model_type} cannot be scaled"
    )
    raise RecipeError(
        f"tokenize.max_length: {max_length}, but the model has {int(limit)} positions. Lower it to {int(limit)}, or "
        f"{advice}."
    )


def _scalable_parameters(text_config: Any) -> Iterator[dict[str, Any]]:
    """Yield the rotary parameters of layers with full attention: one dict, or one per layer type."""
    parameters = getattr(text_config, "rope_parameters", None) or {}
    types = text_config.nested_rope_parameter_keys(parameters)
    if not types and parameters:
        yield parameters
    for name in types:
        if parameters[name] is not None and not any(word in name for word in ("sliding", "chunked")):
            yield parameters[name]


def _num_positions(text_config: Any) -> float | None:
    """Return the number of positions of a model; None if it has no limit."""
    positions = getattr(text_config, "max_position_embeddings", None)
    if not positions or positions < 0 or text_config.model_type in UNLIMITED_ARCHITECTURES:
        return None
    dynamic = [entry["factor"] for entry in _scalable_parameters(text_config) if _rope_type(entry) == "dynamic"]
    return float(positions * max(dynamic, default=1.0))


def _rope_type(entry: dict[str, Any]) -> str:
    return str(entry.get("rope_type") or entry.get("type") or UNSCALED)


def _check_rope_type(entries: list[dict[str, Any]], requested: str) -> None:
    """Reject replacing the scaling type that a model was trained with."""
    for current in sorted({_rope_type(entry) for entry in entries} - {UNSCALED, requested}):
        advice = f"Set rope_type: {current}." if current in SCALING_TYPES else "Remove rope_scaling."
        raise RecipeError(
            f"load.rope_scaling.rope_type: {requested}, but the model was trained with the rope_type {current!r}, "
            f"which would be lost. {advice}"
        )


def _factor(scaling: RopeScaling, old: int, max_length: int) -> float:
    if scaling.factor is None:
        if max_length <= old:
            raise RecipeError(
                f"load.rope_scaling: tokenize.max_length is {max_length} and the model has {old} positions, so no "
                "scaling is needed. Remove rope_scaling, or set a factor."
            )
        return float(math.ceil(max_length / old))
    if max_length > old * scaling.factor:
        raise RecipeError(
            f"load.rope_scaling.factor: {scaling.factor:g} extends {old} positions to {int(old * scaling.factor)}, but "
            f"tokenize.max_length is {max_length}. Set it to {math.ceil(max_length / old)}, or remove it."
        )
    return scaling.factor


def _scale_parameters(entry: dict[str, Any], kind: str, factor: float, positions: int) -> None:
    """Scale one set of rotary parameters; existing scaling of the same type is multiplied."""
    entry.pop("type", None)
    entry["factor"] = entry.get("factor", 1.0) * factor
    entry["rope_type"] = kind
    if kind in ("yarn", "llama3"):
        entry.setdefault("original_max_position_embeddings", positions)
    if kind == "llama3":
        entry.update({name: value for name, value in LLAMA3_DEFAULTS.items() if name not in entry})


def _length_advice(text_config: Any) -> str:
    limit = _num_positions(text_config)
    return f", and set tokenize.max_length to {int(limit)} at most" if limit else ""
