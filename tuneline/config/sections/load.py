"""How the base model is loaded and patched. Field names follow `transformers`, `peft` and `bitsandbytes`."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from tuneline.config.base import Config, LocalPath


class RopeScaling(Config):
    """RoPE scaling: extend the context length beyond that of pretraining."""

    rope_type: Literal["linear", "dynamic", "yarn", "llama3"]
    """Scaling method: `linear` (Chen et al. 2023, arXiv:2306.15595), `dynamic` (NTK-aware), `yarn` (Peng et al. 2023,
    arXiv:2309.00071) or `llama3`."""

    factor: float | None = Field(None, gt=1, le=1e6)
    """Scaling factor. If omitted, `tokenize.max_length` divided by the model's context length."""


class Bnb4bit(Config):
    """4-bit quantization by bitsandbytes while loading (Dettmers et al. 2023, arXiv:2305.14314)."""

    type: Literal["bnb_4bit"]
    bnb_4bit_quant_type: Literal["nf4", "fp4"] = "nf4"
    """4-bit data type. `nf4` is designed for normally distributed weights."""

    bnb_4bit_use_double_quant: bool = True
    """Quantize the quantization constants too, which saves 0.4 bits per weight."""


class Bnb8bit(Config):
    """8-bit quantization by bitsandbytes while loading (LLM.int8(), Dettmers et al. 2022, arXiv:2208.07339)."""

    type: Literal["bnb_8bit"]
    llm_int8_threshold: float = Field(6.0, ge=0, le=1e6)
    """Outlier threshold: columns with larger activations are computed in 16 bits. 0 computes all columns in 8 bits."""


class TorchaoInt8(Config):
    """8-bit weight-only quantization by torchao while loading."""

    type: Literal["torchao_int8"]


Quantization = Annotated[Bnb4bit | Bnb8bit | TorchaoInt8, Field(discriminator="type")]


class AdapterSource(Config):
    """A previously trained adapter for the base model."""

    path: LocalPath
    """Path of the adapter folder, relative to the recipe file."""

    use: Literal["merge", "continue", "reward"] = "merge"
    """`merge` merges the adapter into the base model before training. `continue` trains it further and is only allowed
    for the last adapter. `reward` uses it with its value head as reward model (stages `ppo` and `grpo`)."""


class ModelLoadOptions(Config):
    """How the base model is loaded and patched: options shared by `load` in a recipe and the steps' configs."""

    dtype: Literal["auto", "float32", "bfloat16", "float16", "pure_bfloat16"] = "auto"
    """Data type of frozen weights and of the computation. Trained weights stay in float32, except for `pure_bfloat16`,
    which keeps everything in bfloat16. `auto` decides by device; on a CPU it benchmarks matrix products."""

    attention: Literal[
        "auto", "eager", "sdpa", "segment", "flex_attention", "flash_attention_2", "flash_attention_3"
    ] = "auto"
    """Attention implementation. `segment` computes attention per packed example; `sdpa` and `eager` use a full
    block-diagonal mask; `flash_attention_2` and `flash_attention_3` use sequence lengths on a GPU. `auto` uses the
    first implementation that is installed and supported by the model, and logs it."""

    s2_group_size_ratio: float | None = Field(None, gt=0, le=0.5)
    """Shifted sparse attention during training (LongLoRA, arXiv:2309.12307): group size as a fraction of
    `tokenize.max_length`, like 0.25; half of the heads use groups shifted by half a group. If omitted, full attention.
    LlamaFactory: `shift_attn`."""

    rope_scaling: RopeScaling | None = None
    """RoPE scaling for longer contexts."""

    new_tokens: list[str] = Field(default_factory=list)
    """Tokens to add to the vocabulary. LlamaFactory: `add_tokens`."""

    new_special_tokens: list[str] = Field(default_factory=list)
    """Special tokens to add to the vocabulary. They are never split and are skipped in decoded text."""

    quantization: Quantization | None = None
    """Quantize the frozen weights while loading. Not needed for a model that is already quantized."""

    gradient_checkpointing: Literal["none", "full", "selective"] = "none"
    """Recompute activations in the backward pass: `full` recomputes every layer, `selective` everything except matrix
    products and attention (Chen et al. 2016, arXiv:1604.06174)."""

    kernels: Literal["none", "liger", "unsloth"] = "none"
    """Fused GPU kernels of an optional library."""

    train_from_scratch: bool = False
    """Initialize random weights from the model's config instead of loading weights. The model folder needs no
    weights."""

    trust_remote_code: bool = False
    """Execute Python code from the model's repository. Review it first."""

    allow_pickle: bool = False
    """Allow weights in pickle files (`pytorch_model.bin`), loaded with `weights_only`."""

    def plain(self) -> "ModelLoadOptions":
        """Return the options for inference: default precision and attention, the same permissions."""
        return ModelLoadOptions(**self.model_dump(include={"train_from_scratch", "trust_remote_code", "allow_pickle"}))

    @model_validator(mode="after")
    def _new_tokens_are_unique(self) -> "ModelLoadOptions":
        tokens = [*self.new_tokens, *self.new_special_tokens]
        if duplicates := sorted({token for token in tokens if tokens.count(token) > 1}):
            raise ValueError(
                f"new_tokens: {duplicates[0]!r} is listed twice in new_tokens and new_special_tokens. Remove one."
            )
        if "" in tokens:
            raise ValueError("new_tokens: a token must not be empty. Remove it.")
        return self


class LoadConfig(ModelLoadOptions):
    """How the base model is loaded and patched."""

    adapters: list[AdapterSource] = Field(default_factory=list)
    """Adapters to attach before training, in order. LlamaFactory: `adapter_name_or_path`."""

    @model_validator(mode="after")
    def _only_last_adapter_continues(self) -> "LoadConfig":
        policy_adapters = [adapter for adapter in self.adapters if adapter.use != "reward"]
        if any(adapter.use == "continue" for adapter in policy_adapters[:-1]):
            raise ValueError("adapters: only the last adapter can have use: continue. Set use: merge for the others.")
        return self

    @model_validator(mode="after")
    def _has_at_most_one_reward_model(self) -> "LoadConfig":
        if sum(adapter.use == "reward" for adapter in self.adapters) > 1:
            raise ValueError("adapters: at most one adapter can have use: reward. Remove the others.")
        return self

    @model_validator(mode="after")
    def _quantized_base_has_no_merge(self) -> "LoadConfig":
        if self.quantization and any(adapter.use == "merge" for adapter in self.adapters):
            raise ValueError(
                "adapters: an adapter cannot be merged into quantized weights without changing the model. Merge it "
                "into the full model first and set that as model, or remove quantization."
            )
        return self


class LoadStepConfig(ModelLoadOptions):
    """Options with which a step loads the base model. The adapters' locations are in the model's manifest."""

    max_length: int
    """Maximum row length, for RoPE scaling."""

    uses: list[Literal["merge", "continue"]] = Field(default_factory=list)
    """Use of each adapter in the manifest, in order."""
