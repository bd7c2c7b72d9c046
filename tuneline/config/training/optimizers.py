"""Optimizers: their arguments, requirements and installation, checked when a recipe is read.

`compatibility.yaml` lists which methods each optimizer supports; `tuneline.train.optim.optimizer_factory` builds them.
Imports no heavy libraries.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Literal

from tuneline.config.base import MAX_STEPS
from tuneline.errors import did_you_mean

Optimizer = Literal[
    "adamw_torch",
    "adamw_torch_fused",
    "adamw_torch_8bit",
    "adamw_torch_4bit",
    "adamw_bnb_8bit",
    "paged_adamw_32bit",
    "paged_adamw_8bit",
    "adafactor",
    "lion_32bit",
    "lion_8bit",
    "paged_lion_32bit",
    "paged_lion_8bit",
    "ademamix",
    "ademamix_8bit",
    "paged_ademamix_32bit",
    "paged_ademamix_8bit",
    "sgd",
    "adagrad",
    "rmsprop",
    "rmsprop_bnb_32bit",
    "rmsprop_bnb_8bit",
    "stable_adamw",
    "schedule_free_adamw",
    "schedule_free_radam",
    "schedule_free_sgd",
    "muon",
    "adam_mini",
    "badam",
    "galore_adamw",
    "galore_adamw_8bit",
    "galore_adafactor",
    "galore_adamw_layerwise",
    "galore_adamw_8bit_layerwise",
    "apollo_adamw",
    "apollo_adamw_layerwise",
    "lomo",
    "adalomo",
]

ArgumentType = type | tuple[str, ...]
"""Type of an optimizer argument, or its allowed values."""

ArgumentValue = int | float | bool | str


@dataclass(frozen=True)
class OptimizerSpec:
    """Properties of an optimizer that matter for validation."""

    arguments: Mapping[str, ArgumentType] = field(default_factory=dict)
    """Argument names of `optim_args` and their types."""

    module: str = ""
    """Module that must be importable; empty if torch or transformers provide the optimizer."""

    package: str = ""
    """Package to install for `module`."""

    low_rank: bool = False
    """Projects the gradients of the matrices in `optim_target_modules`."""

    steps_in_backward: bool = False
    """Updates each weight during the backward pass, so gradients of the whole model never exist at once."""

    schedule_free: bool = False
    """Averages weights instead of decaying the learning rate."""

    has_warmup: bool = False
    """Implements its own warmup, in steps."""

    supports_weight_decay: bool = True
    """Supports `weight_decay`."""

    resumable: bool = True
    """Its state can be saved, so that an interrupted training can resume."""


BETAS: dict[str, ArgumentType] = {"beta1": float, "beta2": float}
ADAM: dict[str, ArgumentType] = {**BETAS, "eps": float}
ADEMAMIX: dict[str, ArgumentType] = {**ADAM, "beta3": float, "alpha": float, "t_alpha": int, "t_beta3": int}
SCHEDULE_FREE: dict[str, ArgumentType] = {"r": float, "weight_lr_power": float}
PROJECTION_SIDES = ("std", "reverse_std", "left", "right")
LOW_RANK: dict[str, ArgumentType] = {"rank": int, "update_proj_gap": int, "scale": float}
GALORE: dict[str, ArgumentType] = {**LOW_RANK, "proj_type": (*PROJECTION_SIDES, "full")}
APOLLO: dict[str, ArgumentType] = {
    **LOW_RANK,
    "proj": ("random", "svd"),
    "scale_type": ("channel", "tensor"),
    "proj_type": PROJECTION_SIDES,
}
TORCHAO_ADAM: dict[str, ArgumentType] = {**ADAM, "block_size": int, "bf16_stochastic_round": bool}
STABLE_ADAMW: dict[str, ArgumentType] = {**ADAM, "decouple_lr": bool, "max_lr": float, "kahan_sum": bool}
MUON: dict[str, ArgumentType] = {
    "momentum": float,
    "nesterov": bool,
    "ns_steps": int,
    "adjust_lr_fn": ("match_rms_adamw", "original"),
    "adamw_learning_rate": float,
    **ADAM,
}
BADAM: dict[str, ArgumentType] = {
    "switch_block_every": int,
    "switch_mode": ("random", "ascending", "descending", "fixed"),
    "start_block": int,
    "include_embedding": bool,
    "include_lm_head": bool,
    **ADAM,
}
ADALOMO: dict[str, ArgumentType] = {"clip_threshold": float, "decay_rate": float, "clip_grad_value": float}


def _galore(**properties: bool) -> OptimizerSpec:
    return OptimizerSpec(GALORE, "galore_torch", "galore-torch", low_rank=True, **properties)


def _schedule_free(arguments: dict[str, ArgumentType], *, has_warmup: bool) -> OptimizerSpec:
    arguments = {**arguments, **SCHEDULE_FREE}
    return OptimizerSpec(arguments, "schedulefree", "schedulefree", schedule_free=True, has_warmup=has_warmup)


OPTIMIZER_SPECS: dict[str, OptimizerSpec] = {
    **dict.fromkeys(("adamw_torch", "adamw_torch_fused"), OptimizerSpec(ADAM)),
    **dict.fromkeys(("adamw_bnb_8bit", "paged_adamw_32bit", "paged_adamw_8bit"), OptimizerSpec(ADAM)),
    **dict.fromkeys(("adamw_torch_8bit", "adamw_torch_4bit"), OptimizerSpec(TORCHAO_ADAM, "torchao", "torchao")),
    "adafactor": OptimizerSpec({"clip_threshold": float, "decay_rate": float, "beta1": float}),
    **dict.fromkeys(("lion_32bit", "lion_8bit", "paged_lion_32bit", "paged_lion_8bit"), OptimizerSpec(BETAS)),
    **dict.fromkeys(
        ("ademamix", "ademamix_8bit", "paged_ademamix_32bit", "paged_ademamix_8bit"), OptimizerSpec(ADEMAMIX)
    ),
    "sgd": OptimizerSpec({"momentum": float, "dampening": float, "nesterov": bool}),
    "adagrad": OptimizerSpec({"lr_decay": float, "eps": float}),
    "rmsprop": OptimizerSpec({"alpha": float, "momentum": float, "eps": float, "centered": bool}),
    **dict.fromkeys(("rmsprop_bnb_32bit", "rmsprop_bnb_8bit"), OptimizerSpec({"alpha": float, "eps": float})),
    "stable_adamw": OptimizerSpec(STABLE_ADAMW, "optimi", "torch-optimi"),
    "schedule_free_adamw": _schedule_free(ADAM, has_warmup=True),
    "schedule_free_radam": _schedule_free({**ADAM, "silent_sgd_phase": bool}, has_warmup=False),
    "schedule_free_sgd": _schedule_free({"momentum": float}, has_warmup=True),
    "muon": OptimizerSpec(MUON),
    "adam_mini": OptimizerSpec(ADAM, "adam_mini", "adam-mini"),
    "badam": OptimizerSpec(BADAM, "badam", "badam"),
    **dict.fromkeys(("galore_adamw", "galore_adamw_8bit", "galore_adafactor"), _galore()),
    **dict.fromkeys(
        ("galore_adamw_layerwise", "galore_adamw_8bit_layerwise"),
        _galore(steps_in_backward=True, supports_weight_decay=False, resumable=False),
    ),
    "apollo_adamw": OptimizerSpec(APOLLO, "apollo_torch", "apollo-torch", low_rank=True),
    "apollo_adamw_layerwise": OptimizerSpec(
        APOLLO,
        "apollo_torch",
        "apollo-torch",
        low_rank=True,
        steps_in_backward=True,
        supports_weight_decay=False,
        resumable=False,
    ),
    "lomo": OptimizerSpec({"clip_grad_value": float}, "lomo_optim", "lomo-optim", steps_in_backward=True),
    "adalomo": OptimizerSpec(ADALOMO, "lomo_optim", "lomo-optim", steps_in_backward=True, resumable=False),
}
"""Optimizer name -> its properties."""

BOOLEANS = {"true": True, "false": False}


def parse_optim_args(name: str, text: str | None) -> dict[str, ArgumentValue]:
    """Parse `optim_args`, like `rank=128,scale=2.0`.

    Raises:
        ValueError: The optimizer does not accept an argument, or a value has the wrong type.
    """
    values: dict[str, ArgumentValue] = {}
    known = OPTIMIZER_SPECS[name].arguments
    for part in text.split(",") if text else ():
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or not value or key in values:
            raise ValueError(
                f"optim_args: expected name=value, each name once, got {part.strip()!r}. Write rank=128,scale=2.0, for "
                "example."
            )
        if key not in known:
            raise ValueError(
                f"optim_args: {name} does not accept {key!r}.{did_you_mean(key, known)} Accepted: "
                f"{', '.join(known) or 'none'}."
            )
        values[key] = _parse_value(key, value, known[key])
    return values


def _parse_value(key: str, text: str, kind: ArgumentType) -> ArgumentValue:
    if isinstance(kind, tuple):
        if text not in kind:
            raise ValueError(
                f"optim_args: unknown {key} {text!r}.{did_you_mean(text, kind)} Set one of {', '.join(kind)}."
            )
        return text
    if kind is bool:
        if text.lower() not in BOOLEANS:
            raise ValueError(f"optim_args: {key} must be true or false, got {text!r}. Set one of them.")
        return BOOLEANS[text.lower()]
    try:
        number = int(text) if kind is int else float(text)
    except ValueError:
        expected = "a whole number" if kind is int else "a number"
        raise ValueError(f"optim_args: {key} must be {expected}, got {text!r}. Correct the value.") from None
    if not abs(number) <= MAX_STEPS:  # NaN too
        raise ValueError(f"optim_args: {key} must be a number up to {MAX_STEPS}, got {text:.60}. Correct the value.")
    return number


def check_installed(name: str) -> None:
    """Reject an optimizer whose package is not installed.

    Raises:
        ValueError: The package is not installed. The message names it.
    """
    spec = OPTIMIZER_SPECS[name]
    if spec.module and find_spec(spec.module) is None:
        raise ValueError(
            f"train.optim: {name} requires the package {spec.package}, which is not installed. Run pip install "
            f"{spec.package}, or set train.optim: adamw_torch."
        )
