"""Training arguments shared by all stages, and the config of the adapter merge. Field names follow `transformers`."""

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from tuneline.config.base import MAX_BATCH_SIZE, MAX_SEED, MAX_STEPS, MAX_TOKENS, Config
from tuneline.config.training import optimizers
from tuneline.config.validation import compatibility
from tuneline.errors import did_you_mean

LRSchedulerType = Literal[
    "linear",
    "cosine",
    "constant",
    "constant_with_warmup",
    "cosine_with_restarts",
    "polynomial",
    "inverse_sqrt",
    "cosine_with_min_lr",
    "cosine_warmup_with_min_lr",
    "warmup_stable_decay",
]
"""Schedules of transformers. `reduce_lr_on_plateau` and `greedy` are excluded because they need the Trainer's own
evaluation loop, which Tuneline replaces."""

SchedulerValue = (
    Annotated[float, Field(ge=-MAX_STEPS, le=MAX_STEPS)] | Annotated[int, Field(ge=-MAX_STEPS, le=MAX_STEPS)] | str
)

SCHEDULER_KWARGS: dict[str, tuple[str, ...]] = {
    "cosine": ("num_cycles",),
    "cosine_with_restarts": ("num_cycles",),
    "polynomial": ("lr_end", "power"),
    "inverse_sqrt": ("timescale",),
    "cosine_with_min_lr": ("num_cycles", "min_lr", "min_lr_rate"),
    "cosine_warmup_with_min_lr": ("num_cycles", "min_lr", "min_lr_rate", "warmup_lr_rate"),
    "warmup_stable_decay": (
        "num_decay_steps",
        "num_stable_steps",
        "warmup_type",
        "decay_type",
        "min_lr_ratio",
        "num_cycles",
    ),
}
"""Schedule -> keys of `lr_scheduler_kwargs` that it accepts; schedules not listed accept none."""

REQUIRED_SCHEDULER_KWARGS = {
    "cosine_with_min_lr": ("min_lr", "min_lr_rate"),
    "cosine_warmup_with_min_lr": ("min_lr", "min_lr_rate"),
    "warmup_stable_decay": ("num_decay_steps",),
}
"""Schedule -> keys of which at least one is required."""


CHECKPOINT_FIELDS = {"save_steps", "save_seconds", "save_total_limit", "resume_from"}
TUNELINE_FIELDS = CHECKPOINT_FIELDS | {
    "objective",
    "levers",
    "neftune_noise_alpha",
    "eval_steps",
    "eval_samples",
    "eval_sample_tokens",
    "load_best_model_at_end",
    "early_stopping_patience",
}
"""Fields that are not passed to `transformers.TrainingArguments` because Tuneline implements them."""


class LeversConfig(Config):
    """Optimizations of the training step that change results only by floating-point rounding.

    An optimization that does not support the model or method is disabled automatically, and the run logs the reason.
    """

    head_loss: bool = True
    """Compute the LM head and the cross entropy only at positions with loss, in chunks. Disabled if the head is
    trained, has a bias or an adapter, or if the model scales or caps its logits."""

    fused_lora: bool = True
    """Compute a LoRA layer as one operation. Disabled for dropout, DoRA, quantized base models, other methods and
    `load.gradient_checkpointing: selective`."""

    blocked_attention: bool = True
    """Compute attention over packed examples in blocks of queries. Requires a CPU and `segment` attention. Disabled for
    attention dropout and `load.gradient_checkpointing: selective`."""

    fused_norms: bool = True
    """Compute RMSNorm as one operation. Requires a frozen weight."""

    fused_rotation: bool = True
    """Compute rotary position embeddings as one operation. Requires an architecture that rotates whole heads by
    halves."""

    fused_gates: bool = True
    """Compute SwiGLU as one operation that stores only its two inputs for the backward pass."""

    keep_memory: bool = True
    """Reuse memory between steps instead of returning it to the operating system. Requires a CPU and glibc."""


class TrainingConfig(Config):
    """Training arguments shared by all stages."""

    objective: str
    """Training objective. Determined by the stage."""

    learning_rate: float = Field(1e-4, gt=0, le=100)
    """Peak learning rate."""

    num_train_epochs: float = Field(3, gt=0, le=1e6)
    """Number of epochs over the training rows."""

    max_steps: int = Field(-1, ge=-1, le=MAX_STEPS)
    """Total number of optimizer steps. -1 uses `num_train_epochs`."""

    per_device_train_batch_size: int = Field(1, ge=1, le=MAX_BATCH_SIZE)
    """Rows per forward pass."""

    gradient_accumulation_steps: int = Field(1, ge=1, le=MAX_BATCH_SIZE)
    """Forward passes per optimizer step. The loss is weighted by tokens across all of them."""

    lr_scheduler_type: LRSchedulerType = "cosine"
    """Learning rate schedule."""

    lr_scheduler_kwargs: dict[str, SchedulerValue] = Field(default_factory=dict)
    """Extra arguments of the schedule, like `min_lr_rate: 0.1` for `cosine_with_min_lr`."""

    warmup_steps: float = Field(0, ge=0, le=MAX_STEPS)
    """Number of warmup steps, during which the learning rate rises. A value below 1 is a fraction of all steps."""

    weight_decay: float = Field(0.0, ge=0, le=100)
    """Weight decay. Not applied to norms and biases."""

    max_grad_norm: float | None = Field(1.0, gt=0, le=1e12)
    """Maximum gradient norm for clipping. Null disables clipping, which optimizers that step inside the backward pass
    require."""

    optim: optimizers.Optimizer = "adamw_torch"
    """Optimizer: a name from transformers, or `muon`, `adam_mini` or `badam`. `docs/support-matrix.md` describes each
    one and lists what it can be combined with."""

    optim_args: str | None = None
    """Optimizer arguments, like `rank=128,scale=2.0` for GaLore or `beta2=0.95` for AdamW."""

    optim_target_modules: list[str] | None = None
    """Modules whose weight matrices GaLore and APOLLO project, like `self_attn` and `mlp`."""

    neftune_noise_alpha: float | None = Field(None, gt=0, le=1e4)
    """Scale of the noise added to the embeddings during training (NEFTune, Jain et al. 2023, arXiv:2310.05914), like
    5."""

    levers: LeversConfig = LeversConfig()
    """Optimizations of the training step."""

    seed: int = Field(0, ge=0, le=MAX_SEED)
    """Random seed for adapter initialization, row order and dropout."""

    save_steps: int = Field(100, ge=0, le=MAX_STEPS)
    """Optimizer steps between two checkpoints, from which an interrupted training resumes. 0 saves by `save_seconds`
    only. Does not affect the weights."""

    save_seconds: float = Field(600, gt=0, le=1e9)
    """Maximum time between two checkpoints."""

    save_total_limit: int = Field(2, ge=1, le=10_000)
    """Number of checkpoints to keep during training. All checkpoints are deleted when training completes."""

    resume_from: str | None = None
    """Name of an unfinished training to resume, as printed in the log or found under `.tuneline/training/`. If the
    recipe differs, the run fails and lists the differences. If omitted, an unfinished training with the same recipe is
    resumed automatically."""

    eval_steps: int = Field(0, ge=0, le=MAX_STEPS)
    """Optimizer steps between two evaluations on held-out rows. 0 evaluates only at the end of training."""

    eval_samples: int = Field(0, ge=0, le=10_000)
    """Number of held-out prompts, taken from the first, for which a completion is generated and stored at each
    evaluation."""

    eval_sample_tokens: int = Field(48, ge=1, le=MAX_TOKENS)
    """Maximum number of tokens per such completion."""

    load_best_model_at_end: bool = False
    """Keep the weights with the lowest loss on held-out rows instead of the final ones."""

    early_stopping_patience: int | None = Field(None, ge=1, le=MAX_STEPS)
    """Stop training after this many consecutive evaluations without a lower loss on held-out rows."""

    @field_validator("optim", mode="before")
    @classmethod
    def _optimizer_is_supported(cls, name: object) -> object:
        reason = compatibility.table().unsupported["optimizer"].get(str(name))
        if reason:
            raise ValueError(f"{name} is not supported: {reason}.")
        return name

    @model_validator(mode="after")
    def _optimizer_settings_are_valid(self) -> "TrainingConfig":
        check_optimizer(self)
        return self

    @model_validator(mode="after")
    def _scheduler_kwargs_are_valid(self) -> "TrainingConfig":
        kind, kwargs = self.lr_scheduler_type, self.lr_scheduler_kwargs
        known, required = SCHEDULER_KWARGS.get(kind, ()), REQUIRED_SCHEDULER_KWARGS.get(kind, ())
        for name in kwargs:
            if name not in known:
                raise ValueError(
                    f"lr_scheduler_kwargs: {kind} does not accept {name!r}.{did_you_mean(name, known)} Accepted: "
                    f"{', '.join(known) or 'none'}."
                )
        if required and not any(name in kwargs for name in required):
            raise ValueError(f"lr_scheduler_kwargs: {kind} requires {' or '.join(required)}. Set one of them.")
        return self

    def arguments(self) -> dict[str, object]:
        """Return the arguments that are passed to `transformers.TrainingArguments`."""
        return self.model_dump(mode="json", include=set(TrainingConfig.model_fields) - TUNELINE_FIELDS)

    def weight_affecting_fields(self) -> dict[str, object]:
        """Return all fields that can change the weights: every field except those about checkpoints."""
        return self.model_dump(mode="json", exclude=CHECKPOINT_FIELDS)

    @model_validator(mode="after")
    def _evaluations_are_enabled(self) -> "TrainingConfig":
        for name in ("load_best_model_at_end", "early_stopping_patience", "eval_samples"):
            if getattr(self, name) and not self.eval_steps:
                raise ValueError(f"{name} requires evaluations during training. Set eval_steps, like 50.")
        return self

    @model_validator(mode="after")
    def _max_steps_is_not_zero(self) -> "TrainingConfig":
        if self.max_steps == 0:
            raise ValueError("max_steps: 0 does not train. Set a number of steps, or -1 to use num_train_epochs.")
        return self


class SFTConfig(TrainingConfig):
    """Training arguments of the stages `sft` and `pretrain`."""

    objective: Literal["likelihood"] = "likelihood"
    """Training objective. Determined by the stage."""


class MergeAdapterConfig(Config):
    """How the adapter is merged into the base model, and the allowed deviation."""

    max_kl: float = Field(1e-4, gt=0, le=100)
    """Maximum mean KL divergence between adapter and merged model on held-out rows, in nats per token. The run fails if
    it is exceeded."""

    num_rows: int = Field(4, ge=1, le=10_000)
    """Number of held-out rows used for the comparison."""

    merge_base: Literal["dequantized", "original"] = "dequantized"
    """Target of the merge if the base model is quantized: the dequantized weights that were trained on (`dequantized`),
    or the weights before quantization (`original`)."""

    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Data type of the saved weights. The comparison uses the weights after the cast."""

    max_shard_size: str = Field("5GB", pattern=r"^\d{1,9}(\.\d{1,9})?(KB|MB|GB)$")
    """Maximum size of a weight file."""


def check_optimizer(config: TrainingConfig) -> None:
    """Reject settings that the optimizer ignores or fails on.

    Raises:
        ValueError: The optimizer does not support a setting, or requires another one.
    """
    spec = optimizers.OPTIMIZER_SPECS[config.optim]
    optimizers.parse_optim_args(config.optim, config.optim_args)
    if spec.low_rank and not config.optim_target_modules:
        raise ValueError(
            f"optim_target_modules: {config.optim} requires the modules whose gradients it projects. Set them, like "
            "[self_attn, mlp]."
        )
    if config.optim_target_modules is not None and not spec.low_rank:
        raise ValueError(
            f"optim_target_modules: {config.optim} does not use it. Remove it, or set optim: galore_adamw or "
            "apollo_adamw."
        )
    if config.weight_decay and not spec.supports_weight_decay:
        raise ValueError(f"weight_decay: {config.optim} does not support weight decay. Set weight_decay: 0.")
    if spec.steps_in_backward:
        _check_step_in_backward(config)
    if spec.schedule_free:
        _check_schedule_free(config, has_warmup=spec.has_warmup)


def _check_step_in_backward(config: TrainingConfig) -> None:
    reason = f"{config.optim} updates each weight during the backward pass"
    if config.gradient_accumulation_steps > 1:
        raise ValueError(
            f"gradient_accumulation_steps: {reason}, so gradients cannot be accumulated. Set it to 1 and increase "
            "per_device_train_batch_size."
        )
    if config.max_grad_norm is not None:
        raise ValueError(
            f"max_grad_norm: {reason}, so the total gradient norm is not available. Set max_grad_norm: null."
        )


def _check_schedule_free(config: TrainingConfig, *, has_warmup: bool) -> None:
    if config.lr_scheduler_type != "constant":
        raise ValueError(
            f"lr_scheduler_type: {config.optim} averages weights instead of decaying the learning rate. Set constant"
            + ("; warmup_steps is supported." if has_warmup else ".")
        )
    if config.warmup_steps and not has_warmup:
        raise ValueError(f"warmup_steps: {config.optim} derives its warmup from beta2. Set 0.")
    if config.warmup_steps % 1:
        raise ValueError(f"warmup_steps: {config.optim} requires a whole number of steps. Set a whole number.")
