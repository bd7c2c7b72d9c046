"""Configs of training and merging; field names are those of `peft` and `transformers`."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from tuneline.config.base import Config


class LoraMethod(Config):
    """Low-rank adapter (Hu et al. 2021, arXiv:2106.09685)."""

    type: Literal["lora"]
    r: int = Field(16, ge=1)
    """Rank of the update. LlamaFactory calls this `lora_rank`."""

    lora_alpha: int = Field(32, ge=1)
    """Scale: the update is multiplied by `lora_alpha / r`."""

    lora_dropout: float = Field(0.0, ge=0, lt=1)
    """Share of the adapter's inputs dropped in training."""

    target_modules: Literal["all-linear"] | list[str] = "all-linear"
    """Layers that get an adapter: every linear one but the head, or those with these names."""


class FullMethod(Config):
    """Every weight is trained."""

    type: Literal["full"]


Method = Annotated[LoraMethod | FullMethod, Field(discriminator="type")]


class TrainConfig(Config):
    """The optimisation."""

    learning_rate: float = Field(1e-4, gt=0)
    """Peak learning rate."""

    num_train_epochs: float = Field(3, gt=0)
    """Passes over the training rows."""

    max_steps: int = Field(-1, ge=-1)
    """Optimiser steps to take; -1 follows `num_train_epochs`."""

    per_device_train_batch_size: int = Field(1, ge=1)
    """Rows in one forward pass."""

    gradient_accumulation_steps: int = Field(1, ge=1)
    """Forward passes an optimiser step; the loss is weighted by tokens across them."""

    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "cosine"
    """How the learning rate falls."""

    warmup_steps: float = Field(0, ge=0)
    """Steps over which the learning rate rises; below 1, a share of all steps."""

    weight_decay: float = Field(0.0, ge=0)
    """Decoupled weight decay of AdamW."""

    max_grad_norm: float = Field(1.0, gt=0)
    """Gradients longer than this are shortened to it."""

    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the frozen weights; `auto` takes the faster in a race of two matrix products, and says so."""

    attention: Literal["segment", "sdpa", "flash_attention_2"] = "segment"
    """`segment` computes each packed example's attention by itself; `sdpa` masks one large square; `flash_attention_2`
    (a GPU with flash-attn installed) does by lengths what `segment` does."""

    seed: int = Field(0, ge=0)
    """Seed of the adapter's initial weights, of the order of rows and of dropout."""

    @model_validator(mode="after")
    def _zero_steps_train_nothing(self) -> "TrainConfig":
        if self.max_steps == 0:
            raise ValueError("max_steps: 0 trains nothing. Give a number of steps, or -1 to follow num_train_epochs.")
        return self


class MergeAdapterConfig(Config):
    """How the adapter is folded into the base, and how far the result may stray."""

    max_kl: float = Field(1e-4, gt=0)
    """Largest mean KL divergence (nats a token) between adapter and merged model on held-out rows; more is refused."""

    num_rows: int = Field(4, ge=1)
    """Held-out rows that are compared."""
