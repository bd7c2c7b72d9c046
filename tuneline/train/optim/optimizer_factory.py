"""Builds the optimizer that a recipe names: through transformers, with typed arguments, or from another library.

transformers passes some values of `optim_args` on as strings, and gives GaLore and APOLLO no weight decay; both are
fixed here. Adam-mini (Zhang et al. 2024, arXiv:2406.16793) is configured with the attention heads of the model; Muon is
`tuneline.train.optim.muon`, BAdam `tuneline.train.optim.badam`.
"""

import copy
import inspect
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_optimizer import is_optimizer_factory

from tuneline.config.training import optimizers
from tuneline.config.training.base import TrainingConfig
from tuneline.config.training.optimizers import OPTIMIZER_SPECS, ArgumentValue
from tuneline.errors import RecipeError
from tuneline.model.targets import decoder_layers
from tuneline.train.optim.muon import MuonWithAdamW

ParameterGroups = list[dict[str, Any]]

CUDA_OPTIMIZERS = ("galore_adamw_8bit", "galore_adamw_8bit_layerwise", "adalomo")
"""Optimizers whose libraries keep their state on a CUDA GPU, also if the model is on the CPU."""

PROJECTORS = {
    "galore_torch": ("galore_torch.galore_projector.GaLoreProjector",),
    "apollo_torch": ("apollo_torch.svd_projector.GaLoreProjector", "apollo_torch.random_projector.GradientProjector"),
}
"""Library -> classes in its optimizer state that are not tensors."""


@dataclass
class StageTrainingArguments(TrainingArguments):
    """The arguments of transformers, and the name of an optimizer that transformers does not support."""

    custom_optim: str = ""

    @property
    def optimizer_name(self) -> str:
        """The recipe's `train.optim`."""
        return self.custom_optim or str(self.optim.value if hasattr(self.optim, "value") else self.optim)


def optimizer_arguments(config: TrainingConfig) -> dict[str, Any]:
    """Return the arguments of `StageTrainingArguments` that select the optimizer.

    Raises:
        RecipeError: The optimizer requires a CUDA GPU, and none is available.
    """
    name = config.optim
    if name in CUDA_OPTIMIZERS and not torch.cuda.is_available():
        raise RecipeError(
            f"train.optim: {name} keeps its state on a CUDA GPU, and none is available. Set train.optim: "
            f"{'adafactor' if name == 'adalomo' else 'galore_adamw'}."
        )
    selection = {"optim": "adamw_torch", "custom_optim": name} if name in CUSTOM_OPTIMIZERS else {"optim": name}
    return {**selection, "optim_args": config.optim_args, "max_grad_norm": config.max_grad_norm or 0.0}


def build_optimizer(loop: Trainer, groups: ParameterGroups | None) -> Any:
    """Build the optimizer, or set the class from which transformers creates it.

    Args:
        loop: The trainer; its arguments are `StageTrainingArguments`.
        groups: Parameter groups of the method, or None.

    Returns:
        The optimizer, or None if transformers creates it.
    """
    model, args = loop.model, copy.copy(loop.args)
    optim_args = optimizers.parse_optim_args(args.optimizer_name, args.optim_args)
    for name, argument in (("beta1", "adam_beta1"), ("beta2", "adam_beta2"), ("eps", "adam_epsilon")):
        setattr(args, argument, optim_args.get(name, getattr(args, argument)))
    decay_names = set(loop.get_decay_parameter_names(model))
    loop.add_callback(EvalModeCallback())
    if args.custom_optim:
        groups = groups or _groups(model, decay_names, args.weight_decay)
        return CUSTOM_OPTIMIZERS[args.custom_optim](model, groups, args, optim_args)
    optimizer_class, options = _class_and_options(args, model, optim_args, decay_names)
    if groups is not None:
        return optimizer_class(groups, **options)
    loop.optimizer_cls_and_kwargs = optimizer_class, options
    return None


class EvalModeCallback(TrainerCallback):
    """Switches the optimizer to its final weights at the end: averages (Schedule-Free), or all blocks (BAdam)."""

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, optimizer: Any = None, **_: Any
    ) -> None:
        if callable(getattr(optimizer, "eval", None)):
            optimizer.eval()


@contextmanager
def evaluation_weights(optimizer: Any, parts: dict[str, torch.Tensor]) -> Iterator[None]:
    """Switch the model to the weights that would be saved now, and restore the training weights bitwise afterwards.

    Args:
        optimizer: The optimizer; Schedule-Free optimizers save the average of the weights that they train.
        parts: Trainable parameters by name.
    """
    if not callable(getattr(getattr(optimizer, "optimizer", optimizer), "train", None)):
        yield
        return
    training_weights = {name: part.detach().clone() for name, part in parts.items()}
    optimizer.eval()
    try:
        yield
    finally:
        optimizer.train()
        with torch.no_grad():
            for name, part in parts.items():
                part.copy_(training_weights[name])


def _class_and_options(
    args: StageTrainingArguments, model: nn.Module, optim_args: dict[str, ArgumentValue], decay_names: Collection[str]
) -> tuple[Any, dict[str, Any]]:
    """Return the optimizer class and options of transformers, with the options that transformers does not pass."""
    optimizer_class, options = Trainer.get_optimizer_cls_and_kwargs(args, model)
    assert not is_optimizer_factory(optimizer_class)
    parameters = inspect.signature(optimizer_class).parameters
    options |= {name: value for name, value in optim_args.items() if name in parameters}
    if "no_deprecation_warning" in parameters:
        options["no_deprecation_warning"] = True
    if "model" in options:  # LOMO and AdaLOMO have no parameter groups
        options["weight_decay"] = args.weight_decay
    if "params" in options and "optimizer_dict" not in options:
        names = {id(part): name for name, part in model.named_parameters()}
        options["params"] = list(_split(options["params"], names, decay_names, args.weight_decay))
    module = OPTIMIZER_SPECS[args.optimizer_name].module
    torch.serialization.add_safe_globals([_load(path) for path in PROJECTORS.get(module, ())])
    return optimizer_class, options


def _split(
    groups: ParameterGroups, names: dict[int, str], decay_names: Collection[str], weight_decay: float
) -> Iterable[dict]:
    """Split each group into weights with and without decay; frozen weights are left out."""
    for group in groups:
        trainable = [part for part in group["params"] if part.requires_grad]
        for decays in (True, False):
            parts = [part for part in trainable if (names[id(part)] in decay_names) is decays]
            if parts:
                yield {**group, "params": parts, "weight_decay": weight_decay if decays else 0.0}


def _groups(model: nn.Module, decay_names: Collection[str], weight_decay: float) -> ParameterGroups:
    names = {id(part): name for name, part in model.named_parameters()}
    return list(_split([{"params": list(model.parameters())}], names, decay_names, weight_decay))


def _load(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(import_module(module), name)


def _adam(args: StageTrainingArguments) -> dict[str, Any]:
    return {"lr": args.learning_rate, "betas": (args.adam_beta1, args.adam_beta2), "eps": args.adam_epsilon}


def _muon(
    model: Any, groups: ParameterGroups, args: StageTrainingArguments, optim_args: dict[str, ArgumentValue]
) -> Any:
    adam_arguments = {"adamw_learning_rate", *optimizers.ADAM}
    options = {"adjust_lr_fn": "match_rms_adamw"} | {k: v for k, v in optim_args.items() if k not in adam_arguments}
    adamw_options = _adam(args) | {"lr": optim_args.get("adamw_learning_rate", args.learning_rate)}
    return MuonWithAdamW(model, groups, {"lr": args.learning_rate, **options}, adamw_options)


def _adam_mini(
    model: Any, groups: ParameterGroups, args: StageTrainingArguments, optim_args: dict[str, ArgumentValue]
) -> Any:
    """Build Adam-mini: one second moment per head of queries and keys, per row of other matrices, and per vector."""
    from adam_mini import Adam_mini  # type: ignore[import-untyped]

    config = model.config.get_text_config()
    heads = getattr(config, "num_attention_heads", 1)
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    optimizer = Adam_mini(
        named_parameters=list(model.named_parameters()),
        **_adam(args),
        weight_decay=args.weight_decay,
        dim=1,
        n_heads=1,
        verbose=False,
    )
    # The default, dim * dim / n_heads, is correct only if the heads add up to the hidden size.
    optimizer.head_numel = width * config.hidden_size
    optimizer.world_size = 1  # the default sums over all GPUs of the machine, but no matrix is split here
    for group in optimizer.param_groups:
        _check_adam_mini_shape(optimizer, group)
    return optimizer


def _check_adam_mini_shape(optimizer: Any, group: dict[str, Any]) -> None:
    """Refuse parameter shapes for which Adam-mini would fail at the first step."""
    name, (part,) = group["name"], group["params"]
    if "bias" in name:
        return
    by_head = any(word in name for word in optimizer.wqk_names)
    by_row = not by_head and any(
        word in name
        for words in ("embd_names", "output_names", "wv_names", "mlp_names", "attn_proj_names")
        for word in getattr(optimizer, words)
    )
    if (by_head and part.numel() % optimizer.head_numel) or (by_row and part.ndim != 2):
        raise RecipeError(
            f"train.optim: adam_mini splits {name} by {'heads' if by_head else 'rows'}, but its shape is "
            f"{list(part.shape)}. Set train.optim: adamw_bnb_8bit."
        )


def _badam(
    model: Any, groups: ParameterGroups, args: StageTrainingArguments, optim_args: dict[str, ArgumentValue]
) -> Any:
    from tuneline.train.objectives.reward import REWARD_HEAD
    from tuneline.train.optim.badam import ResumableBAdam

    if hasattr(model, REWARD_HEAD):
        raise RecipeError(
            "train.optim: badam trains decoder layers in turn, and the new reward head belongs to no layer. "
            "Set train.optim: adamw_bnb_8bit."
        )
    prefix, layers = decoder_layers(model)
    blocks = [[f"{prefix}.{number}."] for number in range(len(layers))]
    options = {name: value for name, value in optim_args.items() if name not in optimizers.ADAM}
    _add_outer_blocks(blocks, model, prefix, options)
    start = options.get("start_block")
    if start is not None and not 0 <= int(start) < len(blocks):
        raise RecipeError(
            f"train.optim_args: start_block {start}: this model has {len(blocks)} blocks, numbered from 0."
        )
    return ResumableBAdam(model, groups, blocks, _adam(args), options)


def _add_outer_blocks(blocks: list[list[str]], model: Any, prefix: str, options: dict[str, ArgumentValue]) -> None:
    """Add a block of the embeddings before the layers, and one of the head and last norm after them, if requested."""
    outer = [name for name, _ in model.named_parameters() if not name.startswith(f"{prefix}.")]
    inputs = {id(part) for part in model.get_input_embeddings().parameters()}
    first = [name for name in outer if id(model.get_parameter(name)) in inputs]
    if options.pop("include_embedding", False):
        blocks.insert(0, first)
    if options.pop("include_lm_head", False):
        blocks.append([name for name in outer if name not in first])


CUSTOM_OPTIMIZERS: dict[
    str, Callable[[Any, ParameterGroups, StageTrainingArguments, dict[str, ArgumentValue]], Any]
] = {
    "muon": _muon,
    "adam_mini": _adam_mini,
    "badam": _badam,
}
"""Optimizers that transformers does not support: name -> function that builds it."""
