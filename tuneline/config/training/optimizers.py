"""What each optimizer takes and needs; a recipe is held against it when it is read.

Which method each can be combined with is in `compatibility.yaml`; `tuneline.train.optim.optimizer_factory` builds
them. Imports nothing heavy.
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
"""A type of an argument, or the words that it may be."""

ArgumentValue = int | float | bool | str


@dataclass(frozen=True)
class OptimizerSpec:
    """What a recipe must know of an optimizer."""

    takes: Mapping[str, ArgumentType] = field(default_factory=dict)
    """Names of `optim_args`, and what they are."""

    module: str = ""
    """What must be importable; nothing where torch or transformers have it."""

    package: str = ""
    """What to install for it."""

    low_rank: bool = False
    """It projects the gradients of the matrices of `optim_target_modules`."""

    steps_in_backward: bool = False
    """It changes each weight as soon as its gradient is known, so that there is never a gradient of the whole model."""

    schedule_free: bool = False
    """It averages weights in place of a falling learning rate."""

    warms_up: bool = False
    """It has a warm-up of its own, in steps."""

    supports_weight_decay: bool = True
    """`weight_decay` reaches it."""

    resumable: bool = True
    """Its state can be saved, so that a training goes on."""


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


def _galore(**more: bool) -> OptimizerSpec:
    return OptimizerSpec(GALORE, "galore_torch", "galore-torch", low_rank=True, **more)


def _free(takes: dict[str, ArgumentType], *, warms_up: bool) -> OptimizerSpec:
    takes = {**takes, **SCHEDULE_FREE}
    return OptimizerSpec(takes, "schedulefree", "schedulefree", schedule_free=True, warms_up=warms_up)


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
    "schedule_free_adamw": _free(ADAM, warms_up=True),
    "schedule_free_radam": _free({**ADAM, "silent_sgd_phase": bool}, warms_up=False),
    "schedule_free_sgd": _free({"momentum": float}, warms_up=True),
    "muon": OptimizerSpec(MUON),
    "adam_mini": OptimizerSpec(ADAM, "adam_mini", "adam-mini"),
    "badam": OptimizerSpec(BADAM, "badam", "badam"),
    **dict.fromkeys(("galore_adamw", "galore_adamw_8bit", "galore_adafactor"), _galore()),
    **dict.fromkeys(
        ("galore_adamw_layerwise", "galore_adamw_8bit_layerwise"),
        _galore(in_backward=True, decays=False, keeps_state=False),
    ),
    "apollo_adamw": OptimizerSpec(APOLLO, "apollo_torch", "apollo-torch", low_rank=True),
    "apollo_adamw_layerwise": OptimizerSpec(
        APOLLO, "apollo_torch", "apollo-torch", low_rank=True, in_backward=True, decays=False, keeps_state=False
    ),
    "lomo": OptimizerSpec({"clip_grad_value": float}, "lomo_optim", "lomo-optim", in_backward=True),
    "adalomo": OptimizerSpec(ADALOMO, "lomo_optim", "lomo-optim", in_backward=True, keeps_state=False),
}
"""Optimizer -> what a recipe must know of it."""

BOOLEANS = {"true": True, "false": False}


def parse_optim_args(name: str, text: str | None) -> dict[str, ArgumentValue]:
    """Read `optim_args`, like `rank=128,scale=2.0`.

    Raises:
        ValueError: An argument that the optimizer does not take, or a value that is not of its type.
    """
    found: dict[str, ArgumentValue] = {}
    takes = OPTIMIZER_SPECS[name].takes
    for part in text.split(",") if text else ():
        key, given, value = (piece.strip() for piece in part.partition("="))
        if not given or not value or key in found:
            raise ValueError(
                f"optim_args: {part.strip()!r} is not one argument. Write each once, like rank=128,scale=2.0."
            )
        if key not in takes:
            raise ValueError(
                f"optim_args: {name} takes no {key!r}.{did_you_mean(key, takes)} It takes "
                f"{', '.join(takes) or 'nothing'}."
            )
        found[key] = _read(key, value, takes[key])
    return found


def _read(key: str, text: str, kind: ArgumentType) -> ArgumentValue:
    if isinstance(kind, tuple):
        if text not in kind:
            raise ValueError(f"optim_args: {key} is {text!r}.{did_you_mean(text, kind)} Set one of {', '.join(kind)}.")
        return text
    if kind is bool:
        if text.lower() not in BOOLEANS:
            raise ValueError(f"optim_args: {key} is {text!r}. Set true or false.")
        return BOOLEANS[text.lower()]
    try:
        number = int(text) if kind is int else float(text)
    except ValueError:
        wanted = "a whole number" if kind is int else "a number"
        raise ValueError(f"optim_args: {key} is {text!r}. Give {wanted}.") from None
    if not abs(number) <= MAX_STEPS:  # NaN too
        raise ValueError(f"optim_args: {key} is {text:.60}. Give a number up to {MAX_STEPS}.")
    return number


def check_installed(name: str) -> None:
    """Refuse an optimizer whose library is not there.

    Raises:
        ValueError: What to install.
    """
    traits = OPTIMIZER_SPECS[name]
    if traits.module and find_spec(traits.module) is None:
        raise ValueError(
            f"train.optim: {name} needs the package {traits.package}, which is not installed. Run pip install "
            f"{traits.package}, or set train.optim: adamw_torch."
        )
