"""Methods: how a base model is made trainable. Field names are those of `peft`; `type` picks from the registry."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from tuneline.config.base import MAX_SEED, MAX_STEPS, Config

Targets = Literal["all"] | list[str]

MAX_RANK = 1 << 16
"""Largest rank, width or length of what is added to a model: more than the width of the widest models."""

MAX_LAYERS = 10_000


class FullMethod(Config):
    """Every weight is trained."""

    type: Literal["full"]


class FreezeMethod(Config):
    """Some of the weights are trained, the others stay (Houlsby et al. 2019, arXiv:1902.00751, section 3)."""

    type: Literal["freeze"]
    layers: int = Field(2, ge=-MAX_LAYERS, le=MAX_LAYERS)
    """Trains the last n layers; a negative number the first n; 0 none. LlamaFactory: `freeze_trainable_layers`."""

    trainable_modules: Targets = "all"
    """Parts of those layers, like `mlp`; `all` takes them whole. LlamaFactory: `freeze_trainable_modules`."""

    extra_modules: list[str] = Field(default_factory=list)
    """Modules outside the layers, like `lm_head`, `norm` or `embed_tokens`. LlamaFactory: `freeze_extra_modules`."""

    @model_validator(mode="after")
    def _something_is_trained(self) -> "FreezeMethod":
        if self.layers == 0 and self.trainable_modules != "all":
            raise ValueError("trainable_modules: layers is 0, so no part of a layer is trained. Leave it out.")
        if self.layers == 0 and not self.extra_modules:
            raise ValueError("layers: 0, and extra_modules is empty, so nothing would be trained. Name one of the two.")
        if self.trainable_modules == []:
            raise ValueError("trainable_modules: an empty list trains no part of the layers. Set all, or layers: 0.")
        return self


class LoraMethod(Config):
    """Low-rank adapter (Hu et al. 2021, arXiv:2106.09685) and its kin that merge the same way."""

    type: Literal["lora"]
    r: int = Field(16, ge=1, le=MAX_RANK)
    """Rank of the update. LlamaFactory calls this `lora_rank`."""

    lora_alpha: int = Field(32, ge=1, le=MAX_RANK)
    """Scale: the update is multiplied by `lora_alpha / r`."""

    lora_dropout: float = Field(0.0, ge=0, lt=1)
    """Share of the adapter's inputs dropped in training."""

    target_modules: Targets = "all"
    """Layers that get an adapter: `all` is every linear one, experts of a mixture included, head and router not; or
    those with these names."""

    modules_to_save: list[str] = Field(default_factory=list)
    """Modules that are trained whole beside the adapter. LlamaFactory calls this `additional_target`."""

    use_rslora: bool = False
    """Scale by `lora_alpha / sqrt(r)` (Kalajdzievski 2023, arXiv:2312.03732)."""

    use_dora: bool = False
    """Train magnitude and direction apart (Liu et al. 2024, arXiv:2402.09353)."""

    init_lora_weights: Literal["default", "gaussian", "pissa", "olora"] = "default"
    """`pissa` starts from the main singular directions (Meng et al. 2024, arXiv:2404.02948), `olora` from an
    orthonormal basis (Buyukakyuz 2024, arXiv:2406.01775); both are saved as plain LoRA of twice the rank."""

    loraplus_lr_ratio: float | None = Field(None, ge=1, le=1e6)
    """Learning rate of B over that of A (Hayou et al. 2024, arXiv:2402.12354)."""


class AdaloraMethod(Config):
    """LoRA whose ranks go where they matter (Zhang et al. 2023, arXiv:2303.10512)."""

    type: Literal["adalora"]
    init_r: int = Field(12, ge=1, le=MAX_RANK)
    """Rank at the start."""

    target_r: int = Field(8, ge=1, le=MAX_RANK)
    """Mean rank at the end."""

    tinit: int = Field(0, ge=0, le=MAX_STEPS)
    """Steps before ranks begin to fall."""

    tfinal: int = Field(0, ge=0, le=MAX_STEPS)
    """Steps at the end with ranks fixed."""

    deltaT: int = Field(1, ge=1, le=MAX_STEPS)
    """Steps between two allocations."""

    orth_reg_weight: float = Field(0.5, ge=0, le=1e6)
    """Weight of the penalty that keeps the factors orthogonal."""

    lora_alpha: int = Field(32, ge=1, le=MAX_RANK)
    """Scale of the update."""

    lora_dropout: float = Field(0.0, ge=0, lt=1)
    """Share of the adapter's inputs dropped in training."""

    target_modules: Targets = "all"
    """Layers that get an adapter."""

    @model_validator(mode="after")
    def _ranks_fall(self) -> "AdaloraMethod":
        if self.target_r > self.init_r:
            raise ValueError(f"target_r {self.target_r} is above init_r {self.init_r}, and ranks only fall. Swap them.")
        return self


class VeraMethod(Config):
    """Shared random projections, trained scales (Kopiczko et al. 2023, arXiv:2310.11454)."""

    type: Literal["vera"]
    r: int = Field(256, ge=1, le=MAX_RANK)
    """Rank of the shared projections."""

    d_initial: float = Field(0.1, gt=0, le=1e6)
    """Starting value of the scales."""

    vera_dropout: float = Field(0.0, ge=0, lt=1)
    """Share of the adapter's inputs dropped in training."""

    projection_prng_key: int = Field(0, ge=0, le=MAX_SEED)
    """Seed of the projections; they are saved too."""

    target_modules: Targets = "all"
    """Layers that get an adapter; those that share a projection are cut from the largest."""


class OftMethod(Config):
    """Orthogonal rotations of the weights (Qiu et al. 2023, arXiv:2306.07280)."""

    type: Literal["oft"]
    oft_block_size: int = Field(32, ge=2, le=MAX_RANK)
    """Size of a rotation's block; it divides every adapted layer's inputs."""

    module_dropout: float = Field(0.0, ge=0, lt=1)
    """Share of blocks left out in a step."""

    target_modules: Targets = "all"
    """Layers that get an adapter."""


class Ia3Method(Config):
    """Three trained vectors a layer (Liu et al. 2022, arXiv:2205.05638)."""

    type: Literal["ia3"]
    target_modules: Targets = "all"
    """Layers whose outputs, or inputs where they are `feedforward_modules`, are rescaled."""

    feedforward_modules: list[str] = Field(default_factory=list)
    """Those of the targets whose inputs are rescaled, like `down_proj`."""


class PrefixMethod(Config):
    """Trained keys and values in front of each layer (Li and Liang 2021, arXiv:2101.00190)."""

    type: Literal["prefix"]
    num_virtual_tokens: int = Field(30, ge=1, le=MAX_RANK)
    """Length of the prefix."""

    prefix_projection: bool = False
    """Make the prefix with a small network while training."""


class PromptMethod(Config):
    """Trained embeddings in front of the text (Lester et al. 2021, arXiv:2104.08691)."""

    type: Literal["prompt"]
    num_virtual_tokens: int = Field(30, ge=1, le=MAX_RANK)
    """Length of the prompt."""


class PTuningMethod(Config):
    """A trained prompt made by a small network (Liu et al. 2021, arXiv:2103.10385)."""

    type: Literal["p_tuning"]
    num_virtual_tokens: int = Field(30, ge=1, le=MAX_RANK)
    """Length of the prompt."""

    encoder_hidden_size: int = Field(128, ge=1, le=MAX_RANK)
    """Width of the network."""


class BottleneckMethod(Config):
    """Small networks behind attention and feed-forward (Houlsby et al. 2019, arXiv:1902.00751)."""

    type: Literal["bottleneck"]
    bottleneck_size: int = Field(64, ge=1, le=MAX_RANK)
    """Width of the network."""

    after: list[Literal["attention", "mlp"]] = Field(["attention", "mlp"], min_length=1, max_length=2)
    """Where it stands in each layer."""

    @model_validator(mode="after")
    def _each_place_once(self) -> "BottleneckMethod":
        if len(set(self.after)) < len(self.after):
            raise ValueError(f"after: {self.after[0]!r} is listed twice. List it once.")
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
