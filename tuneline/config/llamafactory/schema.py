"""Types, choices and defaults of the supported LlamaFactory keys."""

import json
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from tuneline.config.base import Config


def _split(value: Any) -> Any:
    """Parse a comma-separated list."""
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _mapping(value: Any) -> Any:
    """Parse a mapping given as a JSON string, like transformers does."""
    try:
        return json.loads(value) if isinstance(value, str) and value.startswith("{") else value
    except json.JSONDecodeError:
        return value


WordList = Annotated[list[str], BeforeValidator(_split)]
JsonMapping = Annotated[dict[str, Any], BeforeValidator(_mapping)]
NumberList = Annotated[list[float], BeforeValidator(_split)]


class Model(Config):
    """Base model and how it is loaded."""

    model_name_or_path: str | None = None
    model_revision: str = "main"
    adapter_name_or_path: WordList | None = None
    create_new_adapter: bool = False
    trust_remote_code: bool = False
    train_from_scratch: bool = False
    add_tokens: WordList | None = None
    add_special_tokens: WordList | None = None
    rope_scaling: Literal["linear", "dynamic", "yarn", "llama3"] | None = None
    flash_attn: Literal["auto", "disabled", "sdpa", "fa2", "fa3"] = "auto"
    shift_attn: bool = False
    use_unsloth: bool = False
    enable_liger_kernel: bool = False
    use_liger_kernel: bool = False
    disable_gradient_checkpointing: bool = False
    quantization_bit: int | None = None
    quantization_method: str = "bnb"
    quantization_type: Literal["nf4", "fp4"] = "nf4"
    double_quantization: bool = True
    bf16: bool = False
    fp16: bool = False
    pure_bf16: bool = False


class Method(Config):
    """Fine-tuning stage and method."""

    stage: Literal["pt", "sft", "rm", "ppo", "dpo", "kto"] = "sft"
    finetuning_type: Literal["lora", "oft", "freeze", "full"] = "lora"
    lora_rank: int = 8
    lora_alpha: int | None = None
    lora_dropout: float = 0.0
    lora_target: WordList = Field(default=["all"])
    additional_target: WordList | None = None
    use_rslora: bool = False
    use_dora: bool = False
    loraplus_lr_ratio: float | None = None
    pissa_init: bool = False
    oft_block_size: int = 32
    oft_target: WordList = Field(default=["all"])
    module_dropout: float = 0.0
    freeze_trainable_layers: int = 2
    freeze_trainable_modules: WordList = Field(default=["all"])
    freeze_extra_modules: WordList | None = None
    pref_loss: Literal["sigmoid", "hinge", "ipo", "kto_pair", "orpo", "simpo"] = "sigmoid"
    pref_beta: float = 0.1
    dpo_label_smoothing: float = 0.0
    simpo_gamma: float = 0.5
    pref_ftx: float = 0.0
    kto_chosen_weight: float = 1.0
    kto_rejected_weight: float = 1.0
    ld_alpha: float | None = None


class Data(Config):
    """Datasets and training rows."""

    template: str | None = None
    default_system: str | None = None
    export_dir: str | None = None
    export_size: int = Field(5, ge=1)
    export_hub_model_id: str | None = None
    infer_dtype: Literal["auto", "float16", "bfloat16", "float32"] = "auto"
    enable_thinking: bool = True
    dataset: WordList | None = None
    dataset_dir: str = "data"
    max_samples: int | None = Field(None, ge=1)
    mix_strategy: Literal["concat", "interleave_under", "interleave_over", "interleave_once"] = "concat"
    interleave_probs: NumberList | None = None
    val_size: float = Field(0.0, ge=0)
    cutoff_len: int = 2048
    packing: bool | None = None
    neat_packing: bool = False
    train_on_prompt: bool = False
    mask_history: bool = False


class Optimizer(Config):
    """Optimizers with their own LlamaFactory keys."""

    optim: str = "adamw_torch"
    use_galore: bool = False
    galore_layerwise: bool = False
    galore_target: WordList = Field(default=["all"])
    galore_rank: int = 16
    galore_update_interval: int = 200
    galore_scale: float = 2.0
    galore_proj_type: Literal["std", "reverse_std", "right", "left", "full"] = "std"
    use_apollo: bool = False
    apollo_layerwise: bool = False
    apollo_target: WordList = Field(default=["all"])
    apollo_rank: int = 16
    apollo_update_interval: int = 200
    apollo_scale: float = 32.0
    apollo_proj: Literal["svd", "random"] = "random"
    apollo_proj_type: Literal["std", "right", "left"] = "std"
    apollo_scale_type: Literal["channel", "tensor"] = "channel"
    apollo_scale_front: bool = False
    use_badam: bool = False
    badam_mode: Literal["layer", "ratio"] = "layer"
    badam_start_block: int | None = None
    badam_switch_mode: Literal["ascending", "descending", "random", "fixed"] = "ascending"
    badam_switch_interval: int = 50
    badam_update_ratio: float = 0.05
    badam_mask_mode: Literal["adjacent", "scatter"] = "adjacent"
    use_adam_mini: bool = False
    use_muon: bool = False


class Training(Config):
    """Supported training arguments of transformers."""

    learning_rate: float = 5e-5
    num_train_epochs: float = 3.0
    max_steps: int = -1
    per_device_train_batch_size: int = 8
    gradient_accumulation_steps: int = 1
    lr_scheduler_type: str = "linear"
    lr_scheduler_kwargs: JsonMapping | None = None
    warmup_ratio: float = Field(0.0, ge=0, lt=1)
    warmup_steps: float = 0
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    neftune_noise_alpha: float | None = None
    seed: int = 42
    save_steps: float = 500
    eval_steps: float | None = None
    load_best_model_at_end: bool = False
    early_stopping_steps: int | None = None
    save_total_limit: int | None = None
    max_new_tokens: int | None = None
    per_device_eval_batch_size: int | None = None
    output_dir: str | None = None
    do_train: bool = False


class LlamaFactoryConfig(Model, Method, Data, Optimizer, Training):
    """All supported keys. A key that is omitted or null has LlamaFactory's default."""

    def is_set(self, key: str) -> bool:
        """Return whether the file sets the key."""
        return key in self.model_fields_set
