"""LoRA and what merges like it: rank-stabilised, weight-decomposed, PiSSA, OLoRA, LoRA+.

PiSSA and OLoRA move a part of the base's weights into the adapter. They are saved as plain LoRA of twice the rank
(Meng et al. 2024, arXiv:2404.02948, appendix C), so that the file works on the base as it was; for that the adapter's
first weights stay in memory beside it.
"""

from pathlib import Path
from typing import Any, ClassVar

import torch
from peft import LoraConfig, get_peft_model_state_dict
from peft.optimizers import create_loraplus_optimizer
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from tuneline.errors import RecipeError
from tuneline.model import targets
from tuneline.model.methods import adapter_io, trainable_embedding_rows
from tuneline.model.methods.base import ANY_QUANTIZATION, families, model_quantization
from tuneline.model.methods.peft_family import ADAPTER_NAME, PeftFamily, layer_options, shorten_names

RESIDUAL_INITS = ("pissa", "olora")
"""Starts that take a part of the base's weights away."""

INITIAL_ADAPTER = "initial_adapter"
"""Where the model keeps the first weights of such an adapter."""

BASE_CHANGING_INITS = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""What `init_lora_weights` says in the files of adapters whose base was changed and that were not converted."""


class Lora(PeftFamily):
    """Low-rank adapters."""

    name = "lora"
    trains_new_tokens = True
    adapts_experts = True
    supported_quantization = ANY_QUANTIZATION
    ignored_keys: ClassVar[frozenset[str]] = PeftFamily.ignored_keys | {"init_lora_weights", "modules_to_save"}

    def disabling_restores_base(self, config: Any) -> bool:
        """PiSSA and OLoRA leave a residual behind."""
        return config.init_lora_weights not in RESIDUAL_INITS

    def check(self, model: nn.Module, config: Any, *, total_steps: int = 0, new_ids: tuple[int, ...] = ()) -> None:
        """Refuse ranks, names and starts that this model cannot have."""
        super().check(model, config, total_steps=total_steps, new_ids=new_ids)
        found = self.find(model, config)
        targets.check_rank(model, found, config.r, "method.r")
        trainable_embedding_rows.check(model, new_ids, config.modules_to_save, found.modules)
        if found.parameters:
            _check_expert_options(config, found.parameters[0])
        _check_initialization(model, config, found)

    def peft_config(
        self, model: PreTrainedModel, config: Any, total_steps: int, new_ids: tuple[int, ...]
    ) -> LoraConfig:
        """Translate the recipe."""
        found = self.find(model, config)
        start = config.init_lora_weights
        return LoraConfig(
            r=config.r,
            lora_alpha=config.lora_alpha,
            lora_dropout=config.lora_dropout,
            use_rslora=config.use_rslora,
            use_dora=config.use_dora,
            init_lora_weights=True if start == "default" else start,
            target_parameters=shorten_names(found.parameters, [n for n, _ in model.named_parameters()]) or None,
            **layer_options(model, found),
            **trainable_embedding_rows.lora_config_options(model, new_ids, config.modules_to_save),
        )

    def attach(
        self, model: PreTrainedModel, config: Any, *, total_steps: int = 0, new_ids: tuple[int, ...] = ()
    ) -> Any:
        """Add the adapter; keep its first weights where they were taken from the base."""
        adapted = super().attach(model, config, total_steps=total_steps, new_ids=new_ids)
        if not self.disabling_restores_base(config):
            first = get_peft_model_state_dict(adapted, save_embedding_layers=False)
            pairs = {name: part.detach().cpu().clone() for name, part in first.items() if _is_factor(name)}
            setattr(adapted, INITIAL_ADAPTER, pairs)
        return adapted

    def save(self, model: Any, folder: Path, *, base_name: str = "") -> None:
        """Write plain LoRA, which PiSSA and OLoRA are converted to."""
        super().save(model, folder, base_name=base_name)
        if first := getattr(model, INITIAL_ADAPTER, None):
            _to_plain_lora(folder, first, use_rslora=model.peft_config[ADAPTER_NAME].use_rslora)

    def check_saved(self, model: nn.Module, folder: Path) -> None:
        """Refuse adapters whose base was changed, and those on one matrix of two names."""
        about = adapter_io.read_config(folder)
        start = str(about.get("init_lora_weights")).lower()
        if start.startswith(BASE_CHANGING_INITS):
            raise RecipeError(
                f"load.adapters: {folder} was saved with init_lora_weights: {start}, which changes the base's weights, "
                "so it does not belong to this base. Save it again with peft's "
                "path_initial_model_for_weight_conversion."
            )
        trainable_embedding_rows.check_token_ids(model, folder, about.get("trainable_token_indices"))
        if targeted := trainable_embedding_rows.first_tied(model, about.get("target_modules")):
            raise RecipeError(
                f"load.adapters: {folder} adapts {targeted}, which this model shares between embedding and head; "
                "merged, it would give other logits. Train it with method.modules_to_save instead."
            )

    def check_continuation(self, folder: Path, config: Any, model: nn.Module | None = None) -> None:
        """Compare the recipe with the files; a start has no meaning any more."""
        super().check_continuation(folder, config, model)
        if config.init_lora_weights != "default":
            raise RecipeError(
                f"method.init_lora_weights: {config.init_lora_weights} does nothing for an adapter that is trained "
                "further. Leave it out."
            )
        whole = adapter_io.read_config(folder).get("modules_to_save") or []
        if model is not None and trainable_embedding_rows.fully_trained_modules(
            model, whole
        ) != trainable_embedding_rows.fully_trained_modules(model, config.modules_to_save):
            raise RecipeError(
                f"method.modules_to_save: the recipe says {config.modules_to_save}, and the adapter {folder} was made "
                f"with {whole}. Write what the adapter has."
            )

    def hint(self, about: dict[str, Any]) -> str:
        """Explain why ranks may have doubled."""
        return " PiSSA and OLoRA are saved as plain LoRA of twice the rank."

    def parameter_groups(
        self, model: Any, config: Any, learning_rate: float, weight_decay: float = 0.0
    ) -> list[dict[str, Any]] | None:
        """Give B its own learning rate (LoRA+), in peft's groups."""
        if config.loraplus_lr_ratio is None:
            return None
        made = create_loraplus_optimizer(
            model,
            _GroupRecorder,
            lr=learning_rate,
            loraplus_lr_ratio=config.loraplus_lr_ratio,
            loraplus_weight_decay=weight_decay,
        )
        return [group for group in made.groups if group["params"]]


class _GroupRecorder:
    """Takes the place of an optimizer, to see what it would be given."""

    def __init__(self, groups: list[dict[str, Any]], **_: Any) -> None:
        self.groups = groups


def _check_expert_options(config: Any, name: str) -> None:
    """Experts in one parameter are adapted through their weights, not through their inputs."""
    reasons = {
        "lora_dropout": (config.lora_dropout > 0, "has no input of its own to drop", "0"),
        "use_dora": (config.use_dora, "has no norm a column that peft could train", "false"),
        "init_lora_weights": (
            config.init_lora_weights in RESIDUAL_INITS,
            "is no single matrix to decompose",
            "default",
        ),
    }
    for key, (asked, why, remedy) in reasons.items():
        if asked:
            raise RecipeError(
                f"method.{key}: {name} holds many experts and {why}. Set {key}: {remedy}, or name layers in "
                "method.target_modules without the experts."
            )


def _check_initialization(model: nn.Module, config: Any, found: targets.TargetLayers) -> None:
    """Refuse what peft computes wrongly, or not at all, on some kinds of weights."""
    kind, start = model_quantization(model), config.init_lora_weights
    if kind and start in RESIDUAL_INITS:
        raise RecipeError(
            f"method.init_lora_weights: {start} decomposes the base's weights, and those of {kind} are no matrices of "
            "floats. Set init_lora_weights: default, or leave load.quantization out."
        )
    if kind == "bnb_8bit" and config.use_dora:
        raise RecipeError(
            "method.use_dora: peft cannot take the norms of bnb_8bit weights after a step. Set use_dora: false, or "
            "load.quantization.type: bnb_4bit."
        )
    transposed = next((name for name in found.modules if isinstance(model.get_submodule(name), Conv1D)), None)
    if start == "olora" and transposed:
        raise RecipeError(
            f"method.init_lora_weights: olora takes {transposed}, a Conv1D, the wrong way round. Set pissa or default."
        )


def _is_factor(name: str) -> bool:
    return ".lora_A." in name or ".lora_B." in name


def _to_plain_lora(folder: Path, first: dict[str, torch.Tensor], *, use_rslora: bool) -> None:
    """Rewrite a saved adapter as the difference to its start: W + s(BA - B0 A0) = W + s[B, -B0][A; A0].

    peft's own conversion keeps only A and B, and loses new rows, whole modules and DoRA's magnitudes on the way.
    The scale s is alpha / r or alpha / sqrt(r); where it is the latter, doubling r takes a factor that B gets.
    """
    tensors = load_file(folder / adapter_io.ADAPTER_WEIGHTS)
    for name, start in first.items():
        if ".lora_A." in name:
            tensors[name] = torch.cat([tensors[name], start.to(tensors[name])])
        else:
            both = torch.cat([tensors[name], -start.to(tensors[name])], dim=1)
            tensors[name] = both * 2**0.5 if use_rslora else both
    save_file(tensors, folder / adapter_io.ADAPTER_WEIGHTS, metadata={"format": "pt"})
    about = adapter_io.read_config(folder)
    alpha = about["lora_alpha"] if use_rslora else 2 * about["lora_alpha"]
    adapter_io.normalize_config(folder, init_lora_weights=True, r=2 * about["r"], lora_alpha=alpha)


families.register("lora")(Lora())
