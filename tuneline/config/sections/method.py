"""Fine-tuning methods. Field names follow `peft`; `type` selects the method."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from tuneline.config.base import MAX_SEED, MAX_STEPS, Config

Targets = Literal["all"] | list[str]

MAX_RANK = 1 << 16
"""Maximum rank, width or length of an adapter: larger than the hidden size of the largest models."""

MAX_LAYERS = 10_000


class FullMethod(Config):
    """Train all weights."""

    type: Literal["full"]


class FreezeMethod(Config):
    """Train part of the weights and freeze the rest (Houlsby et al. 2019, arXiv:1902.00751, section 3)."""

    type: Literal["freeze"]
    layers: int = Field(2, ge=-MAX_LAYERS, le=MAX_LAYERS)
    """Number of layers to train, counted from the end; a negative number counts from the start; 0 trains none.
    LlamaFactory: `freeze_trainable_layers`."""

    trainable_modules: Targets = "all"
    """Modules of those layers to train, like `mlp`. `all` trains entire layers. LlamaFactory:
    `freeze_trainable_modules`."""

    extra_modules: list[str] = Field(default_factory=list)
    """Modules outside the layers to train, like `lm_head`, `norm` or `embed_tokens`. LlamaFactory:
    `freeze_extra_modules`."""

    @model_validator(mode="after")
    def _something_is_trained(self) -> "FreezeMethod":
        if self.layers == 0 and self.trainable_modules != "all":
            raise ValueError("trainable_modules: layers is 0, so no module of a layer is trained. Remove it.")
        if self.layers == 0 and not self.extra_modules:
            raise ValueError("layers is 0 and extra_modules is empty, so nothing would be trained. Set one of them.")
        if self.trainable_modules == []:
            raise ValueError("trainable_modules: an empty list trains no module of the layers. Set all, or layers: 0.")
        return self


class LoraMethod(Config):
    """Low-rank adaptation (Hu et al. 2021, arXiv:2106.09685) and its variants, which are merged in the same way."""

    type: Literal["lora"]
    r: int = Field(16, ge=1, le=MAX_RANK)
    """Rank of the update matrices. LlamaFactory: `lora_rank`."""

    lora_alpha: int = Field(32, ge=1, le=MAX_RANK)
    """Scaling parameter: the update is multiplied by `lora_alpha / r`."""

    lora_dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout probability of the adapter's inputs."""

    target_modules: Targets = "all"
    """Modules that receive an adapter. `all` selects every linear layer, including the experts of a mixture of experts,
    but not the output head or the router. Otherwise a list of module names."""

    modules_to_save: list[str] = Field(default_factory=list)
    """Modules to train fully in addition to the adapter. LlamaFactory: `additional_target`."""

    use_rslora: bool = False
    """Scale by `lora_alpha / sqrt(r)` (rsLoRA, Kalajdzievski 2023, arXiv:2312.03732)."""

    use_dora: bool = False
    """Train magnitude and direction of the weights separately (DoRA, Liu et al. 2024, arXiv:2402.09353)."""

    init_lora_weights: Literal["default", "gaussian", "pissa", "olora"] = "default"
    """Initialization of the adapter. `pissa` uses the principal singular vectors (Meng et al. 2024, arXiv:2404.02948),
    `olora` an orthonormal basis (Buyukakyuz 2024, arXiv:2406.01775); both are saved as a plain LoRA adapter of twice
    the rank."""

    loraplus_lr_ratio: float | None = Field(None, ge=1, le=1e6)
    """Ratio of the learning rates of matrix B and matrix A (LoRA+, Hayou et al. 2024, arXiv:2402.12354)."""


class AdaloraMethod(Config):
    """LoRA with adaptive rank allocation (Zhang et al. 2023, arXiv:2303.10512)."""

    type: Literal["adalora"]
    init_r: int = Field(12, ge=1, le=MAX_RANK)
    """Initial rank of each layer."""

    target_r: int = Field(8, ge=1, le=MAX_RANK)
    """Average rank at the end of training."""

    tinit: int = Field(0, ge=0, le=MAX_STEPS)
    """Number of steps before rank reduction starts."""

    tfinal: int = Field(0, ge=0, le=MAX_STEPS)
    """Number of final steps with fixed ranks."""

    deltaT: int = Field(1, ge=1, le=MAX_STEPS)
    """Steps between two rank allocations."""

    orth_reg_weight: float = Field(0.5, ge=0, le=1e6)
    """Weight of the orthogonality regularization of the factors."""

    lora_alpha: int = Field(32, ge=1, le=MAX_RANK)
    """Scaling parameter of the update."""

    lora_dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout probability of the adapter's inputs."""

    target_modules: Targets = "all"
    """Modules that receive an adapter."""

    @model_validator(mode="after")
    def _target_rank_is_lower(self) -> "AdaloraMethod":
        if self.target_r > self.init_r:
            raise ValueError(
                f"target_r {self.target_r} is above init_r {self.init_r}, but ranks can only decrease. Swap them."
            )
        return self


class VeraMethod(Config):
    """Shared frozen random projections with trained scaling vectors (Kopiczko et al. 2023, arXiv:2310.11454)."""

    type: Literal["vera"]
    r: int = Field(256, ge=1, le=MAX_RANK)
    """Rank of the shared projections."""

    d_initial: float = Field(0.1, gt=0, le=1e6)
    """Initial value of the scaling vectors."""

    vera_dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout probability of the adapter's inputs."""

    projection_prng_key: int = Field(0, ge=0, le=MAX_SEED)
    """Random seed of the projections. The projections are saved with the adapter."""

    target_modules: Targets = "all"
    """Modules that receive an adapter. Layers of different sizes use slices of the largest projection."""


class OftMethod(Config):
    """Orthogonal fine-tuning: rotations of the weights (Qiu et al. 2023, arXiv:2306.07280)."""

    type: Literal["oft"]
    oft_block_size: int = Field(32, ge=2, le=MAX_RANK)
    """Block size of the rotation. Must divide the input dimension of every adapted layer."""

    module_dropout: float = Field(0.0, ge=0, lt=1)
    """Probability that a block is skipped in a training step."""

    target_modules: Targets = "all"
    """Modules that receive an adapter."""


class Ia3Method(Config):
    """Three trained scaling vectors per layer (Liu et al. 2022, arXiv:2205.05638)."""

    type: Literal["ia3"]
    target_modules: Targets = "all"
    """Modules whose outputs are rescaled, or inputs for those in `feedforward_modules`."""

    feedforward_modules: list[str] = Field(default_factory=list)
    """Target modules whose inputs are rescaled, like `down_proj`."""


class PrefixMethod(Config):
    """Prefix tuning: trained keys and values in front of every layer (Li and Liang 2021, arXiv:2101.00190)."""

    type: Literal["prefix"]
    num_virtual_tokens: int = Field(30, ge=1, le=MAX_RANK)
    """Number of virtual tokens in the prefix."""

    prefix_projection: bool = False
    """Generate the prefix with an MLP during training."""


class PromptMethod(Config):
    """Prompt tuning: trained embeddings in front of the input (Lester et al. 2021, arXiv:2104.08691)."""

    type: Literal["prompt"]
    num_virtual_tokens: int = Field(30, ge=1, le=MAX_RANK)
    """Number of virtual tokens in the prompt."""


class PTuningMethod(Config):
    """P-tuning: a prompt generated by a trained encoder (Liu et al. 2021, arXiv:2103.10385)."""

    type: Literal["p_tuning"]
    num_virtual_tokens: int = Field(30, ge=1, le=MAX_RANK)
    """Number of virtual tokens in the prompt."""

    encoder_hidden_size: int = Field(128, ge=1, le=MAX_RANK)
    """Hidden size of the prompt encoder."""


class BottleneckMethod(Config):
    """Bottleneck adapters after attention and feed-forward blocks (Houlsby et al. 2019, arXiv:1902.00751)."""

    type: Literal["bottleneck"]
    bottleneck_size: int = Field(64, ge=1, le=MAX_RANK)
    """Hidden size of the adapter."""

    after: list[Literal["attention", "mlp"]] = Field(["attention", "mlp"], min_length=1, max_length=2)
    """Blocks of each layer that are followed by an adapter."""

    @model_validator(mode="after")
    def _no_duplicates(self) -> "BottleneckMethod":
        if len(set(self.after)) < len(self.after):
            raise ValueError(f"after: {self.after[0]!r} is listed twice. Remove one.")
        return self


Method = Annotated[
    FullMethod
    | FreezeMethod
    | LoraMethod
    | AdaloraMethod
    | VeraMethod
    | OftMethod
    | Ia3Method
    | PrefixMethod
    | PromptMethod
    | PTuningMethod
    | BottleneckMethod,
    Field(discriminator="type"),
]
