"""LoRA and its variants: rsLoRA, DoRA, PiSSA, OLoRA, LoRA+.

PiSSA and OLoRA move part of the base weights into the adapter. They are saved as plain LoRA of twice the rank (Meng et
al. 2024, arXiv:2404.02948, appendix C), so that the file works on the unchanged base model. The initial adapter weights
stay in memory for this conversion.
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
"""Values of `init_lora_weights` that leave a residual in the base weights."""

INITIAL_ADAPTER = "initial_adapter"
"""Attribute of the model with the initial weights of such an adapter."""

BASE_CHANGING_INITS = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Prefixes of `init_lora_weights` in unconverted adapters that require a changed base model."""


class Lora(PeftFamily):
    """Low-rank adapters."""

    name = "lora"
    trains_new_tokens = True
    adapts_experts = True
    supported_quantization = ANY_QUANTIZATION
    ignored_keys: ClassVar[frozenset[str]] = PeftFamily.ignored_keys | {"init_lora_weights", "modules_to_save"}

    def disabling_restores_base(self, config: Any) -> bool:
        """Return False for PiSSA and OLoRA, which leave a residual in the base weights."""
        return config.init_lora_weights not in RESIDUAL_INITS

    def check(self, model: nn.Module, config: Any, *, total_steps: int = 0, new_ids: tuple[int, ...] = ()) -> None:
        """Check rank, target names and initialization."""
        super().check(model, config, total_steps=total_steps, new_ids=new_ids)
        layers = self.find_targets(model, config)
        targets.check_rank(model, layers, config.r, "method.r")
        trainable_embedding_rows.check(model, new_ids, config.modules_to_save, layers.modules)
        if layers.parameters:
            _check_expert_options(config, layers.parameters[0])
        _check_initialization(model, config, layers)

    def build_peft_config(
        self, model: PreTrainedModel, config: Any, total_steps: int, new_ids: tuple[int, ...]
    ) -> LoraConfig:
        """Translate the recipe."""
        layers = self.find_targets(model, config)
        init = config.init_lora_weights
        return LoraConfig(
            r=config.r,
            lora_alpha=config.lora_alpha,
            lora_dropout=config.lora_dropout,
            use_rslora=config.use_rslora,
            use_dora=config.use_dora,
            init_lora_weights=True if init == "default" else init,
            target_parameters=shorten_names(layers.parameters, [n for n, _ in model.named_parameters()]) or None,
            **layer_options(model, layers),
            **trainable_embedding_rows.lora_config_options(model, new_ids, config.modules_to_save),
        )

    def attach(
        self, model: PreTrainedModel, config: Any, *, total_steps: int = 0, new_ids: tuple[int, ...] = ()
    ) -> Any:
        """Add the adapter; keep its initial weights if they were taken from the base."""
        adapted = super().attach(model, config, total_steps=total_steps, new_ids=new_ids)
        if not self.disabling_restores_base(config):
            state = get_peft_model_state_dict(adapted, save_embedding_layers=False)
            factors = {name: tensor.detach().cpu().clone() for name, tensor in state.items() if _is_factor(name)}
            setattr(adapted, INITIAL_ADAPTER, factors)
        return adapted

    def save(self, model: Any, folder: Path, *, base_name: str = "") -> None:
        """Write plain LoRA; PiSSA and OLoRA are converted."""
        super().save(model, folder, base_name=base_name)
        if initial := getattr(model, INITIAL_ADAPTER, None):
            _to_plain_lora(folder, initial, use_rslora=model.peft_config[ADAPTER_NAME].use_rslora)

    def check_saved(self, model: nn.Module, folder: Path) -> None:
        """Reject adapters that require a changed base model, and adapters on tied embeddings."""
        saved = adapter_io.read_config(folder)
        init = str(saved.get("init_lora_weights")).lower()
        if init.startswith(BASE_CHANGING_INITS):
            raise RecipeError(
                f"load.adapters: {folder} was saved with init_lora_weights: {init}, which changes the base weights, so "
                "it does not fit this base model. Save it again with peft's path_initial_model_for_weight_conversion."
            )
        trainable_embedding_rows.check_token_ids(model, folder, saved.get("trainable_token_indices"))
        if tied := trainable_embedding_rows.first_tied(model, saved.get("target_modules")):
            raise RecipeError(
                f"load.adapters: {folder} adapts {tied}, which this model shares between embedding and head; the "
                "merged model would give different logits. Train it with method.modules_to_save instead."
            )

    def check_continuation(self, folder: Path, config: Any, model: nn.Module | None = None) -> None:
        """Compare the recipe with the files; an initialization is rejected."""
        super().check_continuation(folder, config, model)
        if config.init_lora_weights != "default":
            raise RecipeError(
                f"method.init_lora_weights: {config.init_lora_weights} has no effect on an adapter that is trained "
                "further. Remove it."
            )
        saved = adapter_io.read_config(folder).get("modules_to_save") or []
        if model is not None and trainable_embedding_rows.fully_trained_modules(
            model, saved
        ) != trainable_embedding_rows.fully_trained_modules(model, config.modules_to_save):
            raise RecipeError(
                f"method.modules_to_save: the recipe says {config.modules_to_save}, but the adapter {folder} was "
                f"trained with {saved}. Set the adapter's value."
            )

    def mismatch_hint(self, saved: dict[str, Any]) -> str:
        """Explain why the rank may have doubled."""
        return " PiSSA and OLoRA are saved as plain LoRA of twice the rank."

    def parameter_groups(
        self, model: Any, config: Any, learning_rate: float, weight_decay: float = 0.0
    ) -> list[dict[str, Any]] | None:
        """Return groups with a separate learning rate for B (LoRA+), as `peft` builds them."""
        if config.loraplus_lr_ratio is None:
            return None
        recorder = create_loraplus_optimizer(
            model,
            _GroupRecorder,
            lr=learning_rate,
            loraplus_lr_ratio=config.loraplus_lr_ratio,
            loraplus_weight_decay=weight_decay,
        )
        return [group for group in recorder.groups if group["params"]]


class _GroupRecorder:
    """Stand-in for an optimizer class that records its parameter groups."""

    def __init__(self, groups: list[dict[str, Any]], **_: Any) -> None:
        self.groups = groups


def _check_expert_options(config: Any, name: str) -> None:
    """Reject options that `peft` does not support for experts in one parameter: it adapts weights, not inputs."""
    decomposes = config.init_lora_weights in RESIDUAL_INITS
    conflicts = {
        "lora_dropout": (config.lora_dropout > 0, "has no separate input for dropout", "0"),
        "use_dora": (config.use_dora, "has no column norms that peft could train", "false"),
        "init_lora_weights": (decomposes, "is not a single matrix that can be decomposed", "default"),
    }
    for key, (is_set, reason, supported) in conflicts.items():
        if is_set:
            raise RecipeError(
                f"method.{key}: {name} contains several experts and {reason}. Set {key}: {supported}, or list layers "
                "in method.target_modules without the experts."
            )


def _check_initialization(model: nn.Module, config: Any, layers: targets.TargetLayers) -> None:
    """Reject initializations and variants that `peft` computes wrongly on some kinds of weights."""
    kind, init = model_quantization(model), config.init_lora_weights
    if kind and init in RESIDUAL_INITS:
        raise RecipeError(
            f"method.init_lora_weights: {init} decomposes the base weights, which needs floating-point matrices; the "
            f"weights are {kind}. Set init_lora_weights: default, or remove load.quantization."
        )
    if kind == "bnb_8bit" and config.use_dora:
        raise RecipeError(
            "method.use_dora: peft cannot compute the norms of bnb_8bit weights after a step. Set use_dora: false, or "
            "load.quantization.type: bnb_4bit."
        )
    transposed = next((name for name in layers.modules if isinstance(model.get_submodule(name), Conv1D)), None)
    if init == "olora" and transposed:
        raise RecipeError(
            f"method.init_lora_weights: olora does not support {transposed}, a Conv1D: peft reads it transposed. Set "
            "pissa or default."
        )


def _is_factor(name: str) -> bool:
    return ".lora_A." in name or ".lora_B." in name


def _to_plain_lora(folder: Path, initial: dict[str, torch.Tensor], *, use_rslora: bool) -> None:
    """Rewrite a saved adapter as the difference to its initial weights: W + s(BA - B0 A0) = W + s[B, -B0][A; A0].

    `peft`'s own conversion keeps only A and B: it loses new rows, `modules_to_save` and DoRA magnitudes. The scale s is
    alpha / r or, with rsLoRA, alpha / sqrt(r); in the latter case B is multiplied by sqrt(2) because r doubles.
    """
    tensors = load_file(folder / adapter_io.ADAPTER_WEIGHTS)
    for name, tensor in initial.items():
        if ".lora_A." in name:
            tensors[name] = torch.cat([tensors[name], tensor.to(tensors[name])])
        else:
            stacked = torch.cat([tensors[name], -tensor.to(tensors[name])], dim=1)
            tensors[name] = stacked * 2**0.5 if use_rslora else stacked
    save_file(tensors, folder / adapter_io.ADAPTER_WEIGHTS, metadata={"format": "pt"})
    saved = adapter_io.read_config(folder)
    alpha = saved["lora_alpha"] if use_rslora else 2 * saved["lora_alpha"]
    adapter_io.normalize_config(folder, init_lora_weights=True, r=2 * saved["r"], lora_alpha=alpha)


families.register("lora")(Lora())
