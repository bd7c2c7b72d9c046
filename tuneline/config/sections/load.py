"""How the base model is held in memory and patched; names as in `transformers`, `peft` and `bitsandbytes`."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from tuneline.config.base import Config, LocalPath


class RopeScaling(Config):
    """Positions beyond those that the model was trained on, by stretching its rotary embedding."""

    rope_type: Literal["linear", "dynamic", "yarn", "llama3"]
    """`linear` (Chen et al. 2023, arXiv:2306.15595), `dynamic` (NTK-aware), `yarn` (Peng et al. 2023, arXiv:2309.00071)
    or `llama3`."""

    factor: float | None = Field(None, gt=1, le=1e6)
    """How many times longer; where it is left out, `tokenize.max_length` divided by the model's own length."""


class Bnb4bit(Config):
    """4-bit weights of bitsandbytes, made while loading (Dettmers et al. 2023, arXiv:2305.14314)."""

    type: Literal["bnb_4bit"]
    bnb_4bit_quant_type: Literal["nf4", "fp4"] = "nf4"
    """`nf4` fits weights that are normally distributed."""

    bnb_4bit_use_double_quant: bool = True
    """Quantize the scales too; saves 0.4 bits a weight."""


class Bnb8bit(Config):
    """8-bit weights of bitsandbytes, made while loading (Dettmers et al. 2022, arXiv:2208.07339)."""

    type: Literal["bnb_8bit"]
    llm_int8_threshold: float = Field(6.0, ge=0, le=1e6)
    """Columns with activations above this are computed in 16 bits; 0 computes all in 8."""


class TorchaoInt8(Config):
    """8-bit weights of torchao, made while loading."""

    type: Literal["torchao_int8"]


Quantization = Annotated[Bnb4bit | Bnb8bit | TorchaoInt8, Field(discriminator="type")]


class AdapterSource(Config):
    """An adapter that was trained before, for this base model."""

    path: LocalPath
    """Its folder, relative to the recipe's file."""

    use: Literal["merge", "continue", "reward"] = "merge"
    """`merge` folds it into the base before training; `continue` trains it further, and must be the last; `reward`
    judges answers with the head beside it (stages `ppo` and `grpo`), and changes nothing."""


class ModelLoadOptions(Config):
    """How the base model is held and patched; what `load` in a recipe and its slices for the steps share."""

    dtype: Literal["auto", "float32", "bfloat16", "float16", "pure_bfloat16"] = "auto"
    """Precision of frozen weights and of the computation; trained weights stay in float32, but for `pure_bfloat16`,
    which holds everything in bfloat16. `auto` goes by the device; on a CPU two matrix products race."""

    attention: Literal[
        "auto", "eager", "sdpa", "segment", "flex_attention", "flash_attention_2", "flash_attention_3"
    ] = "auto"
    """`segment` computes each packed example's attention by itself; `sdpa` and `eager` mask one large square;
    `flash_attention_2` and `flash_attention_3` do by lengths on a GPU what `segment` does. `auto` takes the first that
    this machine has and the model allows, and says which."""

    s2_group_size_ratio: float | None = Field(None, gt=0, le=0.5)
    """Shifted sparse attention while training (LongLoRA, arXiv:2309.12307): groups of this share of
    `tokenize.max_length`, like 0.25; those of half of the heads are shifted by half a group. Left out, attention is
    full. LlamaFactory calls this `shift_attn`."""

    rope_scaling: RopeScaling | None = None
    """Stretch the positions."""

    new_tokens: list[str] = Field(default_factory=list)
    """Words to add to the vocabulary; LlamaFactory calls this `add_tokens`."""

    new_special_tokens: list[str] = Field(default_factory=list)
    """The same, for marks that a tokenizer never splits and a decoded answer never shows."""

    quantization: Quantization | None = None
    """Hold the frozen weights in fewer bits. A model that comes quantized needs nothing here."""

    gradient_checkpointing: Literal["none", "full", "selective"] = "none"
    """Recompute activations in the backward pass: `full` those of every layer, `selective` all but the results of
    matrix products and attention (Chen et al. 2016, arXiv:1604.06174)."""

    kernels: Literal["none", "liger", "unsloth"] = "none"
    """Fused GPU kernels of a library that is installed beside."""

    train_from_scratch: bool = False
    """Start from random weights of the model's config, not from its trained ones; the folder needs none."""

    trust_remote_code: bool = False
    """Run Python code that comes with the model. Read it first."""

    allow_pickle: bool = False
    """Accept weights in pickle files (`pytorch_model.bin`), read with `weights_only`."""

    def plain(self) -> "ModelLoadOptions":
        """Return the same without what only a training needs: full precision, full attention, the same permissions."""
        return ModelLoadOptions(**self.model_dump(include={"train_from_scratch", "trust_remote_code", "allow_pickle"}))

    @model_validator(mode="after")
    def _a_token_is_new_once(self) -> "ModelLoadOptions":
        tokens = [*self.new_tokens, *self.new_special_tokens]
        if twice := sorted({token for token in tokens if tokens.count(token) > 1}):
            raise ValueError(f"new_tokens: {twice[0]!r} is listed twice. List it once, in one of the two lists.")
        if "" in tokens:
            raise ValueError("new_tokens: an empty text is no token. Leave it out.")
        return self


class LoadConfig(ModelLoadOptions):
    """How the base model is held and patched."""

    adapters: list[AdapterSource] = Field(default_factory=list)
    """Adapters to attach before training, in order; LlamaFactory calls this `adapter_name_or_path`."""

    @model_validator(mode="after")
    def _only_the_last_adapter_goes_on(self) -> "LoadConfig":
        own = [adapter for adapter in self.adapters if adapter.use != "reward"]
        if any(adapter.use == "continue" for adapter in own[:-1]):
            raise ValueError(
                "adapters: only the last adapter can have use: continue; those before it are merged. Set use: merge."
            )
        return self

    @model_validator(mode="after")
    def _one_reward_model_judges(self) -> "LoadConfig":
        if sum(adapter.use == "reward" for adapter in self.adapters) > 1:
            raise ValueError("adapters: several have use: reward, and one reward model judges. Leave one.")
        return self

    @model_validator(mode="after")
    def _a_quantized_base_takes_no_merge(self) -> "LoadConfig":
        if self.quantization and any(adapter.use == "merge" for adapter in self.adapters):
            raise ValueError(
                "adapters: an adapter cannot be folded into weights of few bits without changing the model. Merge it "
                "into the full model first and name that as the model, or leave quantization out."
            )
        return self


class LoadStepConfig(ModelLoadOptions):
    """The slice of the recipe by which a step loads the base model; where adapters lie is in the manifest."""

    max_length: int
    """Longest row, by which positions are stretched."""

    uses: list[Literal["merge", "continue"]] = Field(default_factory=list)
    """What becomes of each adapter of the manifest, in order."""
