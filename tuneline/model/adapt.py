"""Methods: how a base model is made trainable. Entries are named by `method.type` in a recipe."""

from collections.abc import Callable
from typing import Any

from transformers import PreTrainedModel

from tuneline.config.train import FullMethod, LoraMethod
from tuneline.registry import Registry

methods: Registry[Callable[[PreTrainedModel, Any], Any]] = Registry("method")


@methods.register("lora")
def lora(model: PreTrainedModel, method: LoraMethod) -> Any:
    """Freeze the base and add low-rank adapters; the head is never one of `all-linear`."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=method.r,
        lora_alpha=method.lora_alpha,
        lora_dropout=method.lora_dropout,
        target_modules=method.target_modules,
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, config)


@methods.register("full")
def full(model: PreTrainedModel, method: FullMethod) -> Any:
    """Train every weight."""
    return model.requires_grad_(True)
