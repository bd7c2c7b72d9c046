"""Configs of training and merging; field names are those of `transformers`."""

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
"""Those of transformers; `reduce_lr_on_plateau` and `greedy` are left out: they follow the score of an evaluation of
transformers' own, and held-out rows are evaluated here by ours."""

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
"""Schedule -> names of `lr_scheduler_kwargs`; none for those that are not here."""

REQUIRED_SCHEDULER_KWARGS = {
    "cosine_with_min_lr": ("min_lr", "min_lr_rate"),
    "cosine_warmup_with_min_lr": ("min_lr", "min_lr_rate"),
    "warmup_stable_decay": ("num_decay_steps",),
}
"""Schedule -> names of which one must be given."""


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
"""Fields that transformers' arguments do not get: ours knows packed rows, or does it itself."""


class LeversConfig(Config):
    """What makes a step fast and changes numbers by rounding only; each steps aside where it cannot, and says so."""

    head_loss: bool = True
    """Head and cross entropy at trained positions only, in chunks. Not where the head is trained, has a bias or an
    adapter, or where the model scales or caps its logits."""

    fused_lora: bool = True
    """LoRA's layer as one operation. Not with dropout, DoRA, quantized bases, other methods or
    `load.gradient_checkpointing: selective`."""

    blocked_attention: bool = True
    """Attention of packed examples in blocks of queries; on a CPU, with `segment` attention. Not with dropout in
    attention or `load.gradient_checkpointing: selective`."""

    fused_norms: bool = True
    """RMSNorm as one operation, where its weight is frozen."""

    fused_rotation: bool = True
    """Rotary positions as one operation, where the architecture rotates whole heads by halves."""

    fused_gates: bool = True
    """SwiGLU as one operation that keeps its two inputs alone."""

    keep_memory: bool = True
    """Keep the memory of a step for the next; on a CPU with glibc."""


class TrainingConfig(Config):
    """What the trainings of all stages have in common."""

    objective: str
    """What is minimised."""

    learning_rate: float = Field(1e-4, gt=0, le=100)
    """Peak learning rate."""

    num_train_epochs: float = Field(3, gt=0, le=1e6)
    """Passes over the training rows."""

    max_steps: int = Field(-1, ge=-1, le=MAX_STEPS)
    """Optimizer steps to take; -1 follows `num_train_epochs`."""

    per_device_train_batch_size: int = Field(1, ge=1, le=MAX_BATCH_SIZE)
    """Rows in one forward pass."""

    gradient_accumulation_steps: int = Field(1, ge=1, le=MAX_BATCH_SIZE)
    """Forward passes an optimizer step; the loss is weighted by tokens across them."""

    lr_scheduler_type: LRSchedulerType = "cosine"
    """How the learning rate falls."""

    lr_scheduler_kwargs: dict[str, SchedulerValue] = Field(default_factory=dict)
    """What the schedule takes beside, like `min_lr_rate: 0.1` for `cosine_with_min_lr`."""

    warmup_steps: float = Field(0, ge=0, le=MAX_STEPS)
    """Steps over which the learning rate rises; below 1, a share of all steps."""

    weight_decay: float = Field(0.0, ge=0, le=100)
    """Weight decay; norms and biases are left out."""

    max_grad_norm: float | None = Field(1.0, gt=0, le=1e12)
    """Gradients longer than this are shortened to it; null leaves them, as optimizers that step inside the backward
    pass must."""

    optim: optimizers.Optimizer = "adamw_torch"
    """Optimizer, by its name in transformers, or muon, adam_mini or badam; `docs/support-matrix.md` says what each is
    and what it goes with."""

    optim_args: str | None = None
    """Arguments of the optimizer, like `rank=128,scale=2.0` for GaLore or `beta2=0.95` for AdamW."""

    optim_target_modules: list[str] | None = None
    """Modules whose matrices GaLore and APOLLO project, like `self_attn` and `mlp`."""

    neftune_noise_alpha: float | None = Field(None, gt=0, le=1e4)
    """Noise on the embeddings while training (NEFTune, Jain et al. 2023, arXiv:2310.05914), like 5."""

    levers: LeversConfig = LeversConfig()
    """What makes a step fast."""

    seed: int = Field(0, ge=0, le=MAX_SEED)
    """Seed of the adapter's initial weights, of the order of rows and of dropout."""

    save_steps: int = Field(100, ge=0, le=MAX_STEPS)
    """Optimizer steps between two checkpoints of the training state, from which a killed training goes on; 0 saves by
    time alone. It does not change the weights."""

    save_seconds: float = Field(600, gt=0, le=1e9)
    """Longest time between two checkpoints."""

    save_total_limit: int = Field(2, ge=1, le=10_000)
    """Checkpoints to keep while training; all are removed when it is done."""

    resume_from: str | None = None
    """Name of an unfinished training that this one must go on with, as a log or `.tuneline/training/` tells it; one of
    another recipe is refused with what differs. Left out, a training of the same recipe is found by itself."""

    eval_steps: int = Field(0, ge=0, le=MAX_STEPS)
    """Optimizer steps between two evaluations on held-out rows; 0 evaluates at the end alone."""

    eval_samples: int = Field(0, ge=0, le=10_000)
    """Held-out prompts that are answered at each evaluation, the first ones, so that one can read what is learned."""

    eval_sample_tokens: int = Field(48, ge=1, le=MAX_TOKENS)
    """Longest answer of these."""

    load_best_model_at_end: bool = False
    """Keep the weights of the evaluation with the lowest loss on held-out rows, not the last ones."""

    early_stopping_patience: int | None = Field(None, ge=1, le=MAX_STEPS)
    """Stop after so many evaluations in a row that did not lower the loss on held-out rows."""

    @field_validator("optim", mode="before")
    @classmethod
    def _left_out_for_a_reason(cls, name: object) -> object:
        reason = compatibility.table().left_out["optimizer"].get(str(name))
        if reason:
            raise ValueError(f"{name} is left out: {reason}.")
        return name

    @model_validator(mode="after")
    def _the_optimizer_can_follow(self) -> "Optimisation":
        check_optimizer(self)
        return self

    @model_validator(mode="after")
    def _the_schedule_takes_its_own_kwargs(self) -> "Optimisation":
        kind, given = self.lr_scheduler_type, self.lr_scheduler_kwargs
        known, needed = SCHEDULER_KWARGS.get(kind, ()), REQUIRED_SCHEDULER_KWARGS.get(kind, ())
        for name in given:
            if name not in known:
                raise ValueError(
                    f"lr_scheduler_kwargs: {kind} takes no {name!r}.{did_you_mean(name, known)} It takes "
                    f"{', '.join(known) or 'nothing'}."
                )
        if needed and not any(name in given for name in needed):
            raise ValueError(f"lr_scheduler_kwargs: {kind} needs {' or '.join(needed)}. Give one.")
        return self

    def arguments(self) -> dict[str, object]:
        """Return what transformers' Trainer takes, by its names."""
        return self.model_dump(mode="json", include=set(TrainingConfig.model_fields) - TUNELINE_FIELDS)

    def weight_affecting_fields(self) -> dict[str, object]:
        """Return the values that shape the weights: all but where the training state is saved."""
        return self.model_dump(mode="json", exclude=CHECKPOINT_FIELDS)

    @model_validator(mode="after")
    def _the_best_needs_evaluations(self) -> "Optimisation":
        for name in ("load_best_model_at_end", "early_stopping_patience", "eval_samples"):
            if getattr(self, name) and not self.eval_steps:
                raise ValueError(f"{name} needs evaluations while training. Set eval_steps, like 50.")
        return self

    @model_validator(mode="after")
    def _zero_steps_train_nothing(self) -> "Optimisation":
        if self.max_steps == 0:
            raise ValueError("max_steps: 0 trains nothing. Give a number of steps, or -1 to follow num_train_epochs.")
        return self


class SFTConfig(TrainingConfig):
    """The optimisation."""

    objective: Literal["likelihood"] = "likelihood"
    """What is minimised; it follows from the stage."""


class MergeAdapterConfig(Config):
    """How the adapter is folded into the base, and how far the result may stray."""

    max_kl: float = Field(1e-4, gt=0, le=100)
    """Largest mean KL divergence (nats a token) between adapter and merged model on held-out rows; more is refused."""

    num_rows: int = Field(4, ge=1, le=10_000)
    """Held-out rows that are compared."""

    merge_base: Literal["dequantized", "original"] = "dequantized"
    """Of a quantized base: fold into what was trained on (`dequantized`), or into the weights before quantization."""

    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Precision of the saved weights; the comparison is made after rounding to it."""

    max_shard_size: str = Field("5GB", pattern=r"^\d{1,9}(\.\d{1,9})?(KB|MB|GB)$")
    """Largest file of weights."""


def check_optimizer(config: TrainingConfig) -> None:
    """Refuse settings that an optimizer cannot follow.

    Raises:
        ValueError: What it would ignore, or fail on late.
    """
    traits = optimizers.OPTIMIZER_SPECS[config.optim]
    optimizers.parse_optim_args(config.optim, config.optim_args)
    if traits.low_rank and not config.optim_target_modules:
        raise ValueError(
            f"optim_target_modules: {config.optim} projects the gradients of some matrices, and none is named. Name "
            "modules, like [self_attn, mlp]."
        )
    if config.optim_target_modules is not None and not traits.low_rank:
        raise ValueError(
            f"optim_target_modules: {config.optim} treats all weights alike. Leave it out, or set optim: galore_adamw "
            "or apollo_adamw."
        )
    if config.weight_decay and not traits.supports_weight_decay:
        raise ValueError(f"weight_decay: {config.optim} decays no weights. Set weight_decay: 0.")
    if traits.steps_in_backward:
        _steps_in_the_backward_pass(config)
    if traits.schedule_free:
        _needs_no_schedule(config, warms_up=traits.warms_up)


def _steps_in_the_backward_pass(config: TrainingConfig) -> None:
    because = f"{config.optim} changes each weight as soon as its gradient is known"
    if config.gradient_accumulation_steps > 1:
        raise ValueError(
            f"gradient_accumulation_steps: {because}, so no gradients are left to add up. Set it to 1, and "
            "per_device_train_batch_size higher."
        )
    if config.max_grad_norm is not None:
        raise ValueError(
            f"max_grad_norm: {because}, so the length of all gradients is never known. Set max_grad_norm: null."
        )


def _needs_no_schedule(config: TrainingConfig, *, warms_up: bool) -> None:
    if config.lr_scheduler_type != "constant":
        raise ValueError(
            f"lr_scheduler_type: {config.optim} averages weights in place of a schedule. Set constant"
            + ("; warmup_steps is its own." if warms_up else ".")
        )
    if config.warmup_steps and not warms_up:
        raise ValueError(f"warmup_steps: {config.optim} has a warm-up that follows from beta2. Set 0.")
    if config.warmup_steps % 1:
        raise ValueError(f"warmup_steps: {config.optim} counts whole steps, not shares of all. Give a whole number.")
