"""Makes the optimizer that a recipe names: by transformers, with arguments in their types, or one that it lacks.

transformers hands some arguments of `optim_args` on as text, and gives GaLore and APOLLO no weight decay; both are put
right here. Adam-mini (Zhang et al. 2024, arXiv:2406.16793) is told the heads of the model; Muon is
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
"""Optimizers whose libraries keep their state on a GPU whatever the model lies on."""

PROJECTORS = {
    "galore_torch": ("galore_torch.galore_projector.GaLoreProjector",),
    "apollo_torch": ("apollo_torch.svd_projector.GaLoreProjector", "apollo_torch.random_projector.GradientProjector"),
}
"""Library -> classes of what it keeps in its state beside tensors."""


@dataclass
class StageTrainingArguments(TrainingArguments):
    """Arguments of transformers, and the name of an optimizer that it does not know."""

    custom_optim: str = ""

    @property
    def optimizer_name(self) -> str:
        """The recipe's `train.optim`."""
        return self.custom_optim or str(self.optim.value if hasattr(self.optim, "value") else self.optim)


def optimizer_arguments(config: TrainingConfig) -> dict[str, Any]:
    """Return what `Arguments` is told of the optimizer.

    Raises:
        RecipeError: The optimizer needs a GPU, and there is none.
    """
    name = config.optim
    if name in CUDA_OPTIMIZERS and not torch.cuda.is_available():
        raise RecipeError(
            f"train.optim: {name} keeps its state on a CUDA GPU, and there is none. Set train.optim: "
            f"{'adafactor' if name == 'adalomo' else 'galore_adamw'}."
        )
    own = {"optim": "adamw_torch", "own_optim": name} if name in CUSTOM_OPTIMIZERS else {"optim": name}
    return {**own, "optim_args": config.optim_args, "max_grad_norm": config.max_grad_norm or 0.0}


def build_optimizer(loop: Trainer, groups: ParameterGroups | None) -> Any:
    """Make the optimizer, or tell the loop of what class transformers makes it.

    Args:
        loop: What trains; its arguments are `Arguments`.
        groups: Groups of the method, where it has any.

    Returns:
        The optimizer, or None where transformers goes on.
    """
    model, args = loop.model, copy.copy(loop.args)
    given = optimizers.parse_optim_args(args.optimizer_name, args.optim_args)
    for ours, theirs in (("beta1", "adam_beta1"), ("beta2", "adam_beta2"), ("eps", "adam_epsilon")):
        setattr(args, theirs, given.get(ours, getattr(args, theirs)))
    decayed = set(loop.get_decay_parameter_names(model))
    loop.add_callback(EvalModeCallback())
    if args.custom_optim:
        return CUSTOM_OPTIMIZERS[args.custom_optim](
            model, groups or _groups(model, decayed, args.weight_decay), args, given
        )
    kind, options = _theirs(args, model, given, decayed)
    if groups is not None:
        return kind(groups, **options)
    loop.optimizer_cls_and_kwargs = kind, options
    return None


class EvalModeCallback(TrainerCallback):
    """Leave the weights of an optimizer that trains on others than it ends with: averages, or all blocks at once."""

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, optimizer: Any = None, **_: Any
    ) -> None:
        if callable(getattr(optimizer, "eval", None)):
            optimizer.eval()


@contextmanager
def evaluation_weights(optimizer: Any, parts: dict[str, torch.Tensor]) -> Iterator[None]:
    """Hold for a while the weights that would be saved now, then give back those that are trained on, bit by bit.

    Args:
        optimizer: What trains; schedule-free ones train on other weights than their averages.
        parts: What is trained, by name.
    """
    if not callable(getattr(getattr(optimizer, "optimizer", optimizer), "train", None)):
        yield
        return
    before = {name: part.detach().clone() for name, part in parts.items()}
    optimizer.eval()
    try:
        yield
    finally:
        optimizer.train()
        with torch.no_grad():
            for name, part in parts.items():
                part.copy_(before[name])


def _theirs(
    args: StageTrainingArguments, model: nn.Module, given: dict[str, ArgumentValue], decayed: Collection[str]
) -> tuple[Any, dict[str, Any]]:
    """Ask transformers for the class and its options, and complete them."""
    kind, options = Trainer.get_optimizer_cls_and_kwargs(args, model)
    assert not is_optimizer_factory(kind)
    known = inspect.signature(kind).parameters
    options |= {name: value for name, value in given.items() if name in known}
    if "no_deprecation_warning" in known:
        options["no_deprecation_warning"] = True
    if "model" in options:  # LOMO and AdaLOMO make no groups
        options["weight_decay"] = args.weight_decay
    if "params" in options and "optimizer_dict" not in options:
        names = {id(part): name for name, part in model.named_parameters()}
        options["params"] = list(_split(options["params"], names, decayed, args.weight_decay))
    module = OPTIMIZER_SPECS[args.optimizer_name].module
    torch.serialization.add_safe_globals([_load(path) for path in PROJECTORS.get(module, ())])
    return kind, options


def _split(
    groups: ParameterGroups, names: dict[int, str], decayed: Collection[str], weight_decay: float
) -> Iterable[dict]:
    """Part each group into weights that decay and those that do not; what is not trained is left out."""
    for group in groups:
        trained = [part for part in group["params"] if part.requires_grad]
        for decays in (True, False):
            parts = [part for part in trained if (names[id(part)] in decayed) is decays]
            if parts:
                yield {**group, "params": parts, "weight_decay": weight_decay if decays else 0.0}


def _groups(model: nn.Module, decayed: Collection[str], weight_decay: float) -> ParameterGroups:
    names = {id(part): name for name, part in model.named_parameters()}
    return list(_split([{"params": list(model.parameters())}], names, decayed, weight_decay))


def _load(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(import_module(module), name)


def _adam(args: StageTrainingArguments) -> dict[str, Any]:
    return {"lr": args.learning_rate, "betas": (args.adam_beta1, args.adam_beta2), "eps": args.adam_epsilon}


def _muon(model: Any, groups: ParameterGroups, args: StageTrainingArguments, given: dict[str, ArgumentValue]) -> Any:
    of_adam = {"adamw_learning_rate", *optimizers.ADAM}
    options = {"adjust_lr_fn": "match_rms_adamw"} | {k: v for k, v in given.items() if k not in of_adam}
    rest = _adam(args) | {"lr": given.get("adamw_learning_rate", args.learning_rate)}
    return MuonWithAdamW(model, groups, {"lr": args.learning_rate, **options}, rest)


def _adam_mini(
    model: Any, groups: ParameterGroups, args: StageTrainingArguments, given: dict[str, ArgumentValue]
) -> Any:
    """Adam-mini keeps one second moment a head of queries and keys, a row of other matrices, or a vector."""
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
    # It would take dim * dim / n_heads, which is true only where the heads add up to the width of the model.
    optimizer.head_numel = width * config.hidden_size
    optimizer.world_size = 1  # it adds up over all GPUs of the machine, and no matrix is split here
    for group in optimizer.param_groups:
        _fits_adam_mini(optimizer, group)
    return optimizer


def _fits_adam_mini(optimizer: Any, group: dict[str, Any]) -> None:
    """Refuse shapes on which Adam-mini would end in an error of shapes at the first step."""
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
            f"train.optim: adam_mini splits {name} by {'heads' if by_head else 'rows'}, and its shape is "
            f"{list(part.shape)}. Set train.optim: adamw_bnb_8bit."
        )


def _badam(model: Any, groups: ParameterGroups, args: StageTrainingArguments, given: dict[str, ArgumentValue]) -> Any:
    from tuneline.train.objectives.reward import REWARD_HEAD
    from tuneline.train.optim.badam import ResumableBAdam

    if hasattr(model, REWARD_HEAD):
        raise RecipeError(
            "train.optim: badam trains layers in turn, and the new head that answers with a number belongs to none. "
            "Set train.optim: adamw_bnb_8bit."
        )
    prefix, layers = decoder_layers(model)
    blocks = [[f"{prefix}.{number}."] for number in range(len(layers))]
    options = {name: value for name, value in given.items() if name not in optimizers.ADAM}
    _extend(blocks, model, prefix, options)
    start = options.get("start_block")
    if start is not None and not 0 <= int(start) < len(blocks):
        raise RecipeError(f"train.optim_args: start_block {start}: this model has {len(blocks)} blocks, from 0 on.")
    return ResumableBAdam(model, groups, blocks, _adam(args), options)


def _extend(blocks: list[list[str]], model: Any, prefix: str, options: dict[str, ArgumentValue]) -> None:
    """Make the embeddings a block before the layers, and head and last norm one after them, where asked for."""
    outside = [name for name, _ in model.named_parameters() if not name.startswith(f"{prefix}.")]
    inputs = {id(part) for part in model.get_input_embeddings().parameters()}
    first = [name for name in outside if id(model.get_parameter(name)) in inputs]
    if options.pop("include_embedding", False):
        blocks.insert(0, first)
    if options.pop("include_lm_head", False):
        blocks.append([name for name in outside if name not in first])


CUSTOM_OPTIMIZERS: dict[
    str, Callable[[Any, ParameterGroups, StageTrainingArguments, dict[str, ArgumentValue]], Any]
] = {
    "muon": _muon,
    "adam_mini": _adam_mini,
    "badam": _badam,
}
"""Optimizers that transformers does not know."""
