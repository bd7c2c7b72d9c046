"""Translate LlamaFactory's model and method keys to the sections `model`, `load` and `method`."""

import re
from pathlib import Path
from typing import Any

from tuneline.config.llamafactory.translation import Translation

ATTENTION = {
    "auto": "auto",
    "disabled": "eager",
    "sdpa": "sdpa",
    "fa2": "flash_attention_2",
    "fa3": "flash_attention_3",
}
GROUP_RATIO = 0.25
"""LlamaFactory's fixed group size ratio of shifted sparse attention."""


def model_source(name: str, revision: str = "main") -> dict[str, Any]:
    """Return a model's source: an existing folder, or a Hub repository if the name can be one."""
    if not Path(name).is_dir() and re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", name):
        pinned = {} if revision == "main" else {"revision": revision}
        return {"type": "hub", "repo_id": name, **pinned}
    return {"type": "directory", "path": str(Path(name).resolve())}


def translate_model(translation: Translation) -> None:
    """Translate the location of the base model and how it is loaded."""
    config = translation.config
    if config.model_name_or_path is None:
        translation.refuse("model_name_or_path", "is required. Set a folder or a repository on the Hub.")
    else:
        source = model_source(config.model_name_or_path, config.model_revision)
        translation.set_value("model", source, "model_name_or_path", "model_revision")
    _adapters(translation)
    for key in ("trust_remote_code", "train_from_scratch"):
        translation.set_if_enabled(f"load.{key}", getattr(config, key), key)
    translation.set_if_enabled("load.new_tokens", config.add_tokens, "add_tokens")
    translation.set_if_enabled("load.new_special_tokens", config.add_special_tokens, "add_special_tokens")
    _precision(translation)
    translation.set_value("load.attention", ATTENTION[config.flash_attn], "flash_attn")
    translation.set_if_enabled("load.s2_group_size_ratio", GROUP_RATIO if config.shift_attn else None, "shift_attn")
    if config.rope_scaling:
        translation.set_value("load.rope_scaling", {"rope_type": config.rope_scaling}, "rope_scaling")
        translation.note("rope_scaling", "the scaling factor is exact; LlamaFactory rounds it up")
    recompute = "none" if config.disable_gradient_checkpointing else "full"
    translation.set_value("load.gradient_checkpointing", recompute, "disable_gradient_checkpointing")
    _kernels(translation)
    _quantization(translation)


def _adapters(translation: Translation) -> None:
    config = translation.config
    if not config.adapter_name_or_path:
        return
    paths = [str(Path(path).resolve()) for path in config.adapter_name_or_path]
    uses = ["merge"] * (len(paths) - 1) + ["merge" if config.create_new_adapter else "continue"]
    adapters = [{"path": path, "use": use} for path, use in zip(paths, uses, strict=True)]
    translation.set_value("load.adapters", adapters, "adapter_name_or_path", "create_new_adapter")


def _precision(translation: Translation) -> None:
    config = translation.config
    dtypes = {"pure_bf16": "pure_bfloat16", "bf16": "bfloat16", "fp16": "float16"}
    set_keys = [key for key in dtypes if getattr(config, key)]
    if "fp16" in set_keys and len(set_keys) > 1:
        translation.refuse("fp16", f"cannot be combined with {set_keys[0]}. Remove one of the two.")
    if set_keys:
        translation.set_value("load.dtype", dtypes[set_keys[0]], *set_keys)
        return
    translation.add(
        "load.dtype",
        "auto",
        "no precision is set; LlamaFactory uses the data type of the stored weights, Tuneline decides by device and "
        "logs the choice",
    )


def _kernels(translation: Translation) -> None:
    config = translation.config
    liger = [key for key in ("enable_liger_kernel", "use_liger_kernel") if getattr(config, key)]
    if liger and config.use_unsloth:
        translation.refuse(
            liger[0], "cannot be combined with use_unsloth, which replaces the same layers. Remove one of the two."
        )
    if config.use_unsloth:
        translation.set_value("load.kernels", "unsloth", "use_unsloth")
    elif liger:
        translation.set_value("load.kernels", "liger", *liger)


def _quantization(translation: Translation) -> None:
    config = translation.config
    bits, quantization_method = config.quantization_bit, config.quantization_method
    if bits is None:
        return
    if quantization_method not in ("bnb", "bitsandbytes"):
        translation.refuse(
            "quantization_method", f"{quantization_method!r} is not supported while loading. Set bnb, with 4 or 8 bits."
        )
    if bits not in (4, 8):
        translation.refuse("quantization_bit", f"expected 4 or 8 bits, got {bits!r}. Set one of them.")
    if bits == 8:
        translation.set_value("load.quantization", {"type": "bnb_8bit"}, "quantization_bit", "quantization_method")
        return
    quantization = {
        "type": "bnb_4bit",
        "bnb_4bit_quant_type": config.quantization_type,
        "bnb_4bit_use_double_quant": config.double_quantization,
    }
    keys = ("quantization_bit", "quantization_method", "quantization_type", "double_quantization")
    translation.set_value("load.quantization", quantization, *keys)


def translate_method(translation: Translation) -> None:
    """Translate the fine-tuning method."""
    kind = translation.config.finetuning_type
    translation.set_value("method.type", kind, "finetuning_type")
    if kind in METHODS:
        METHODS[kind](translation)


def _lora(translation: Translation) -> None:
    config = translation.config
    translation.set_value("method.r", config.lora_rank, "lora_rank")
    if config.lora_alpha:
        translation.set_value("method.lora_alpha", config.lora_alpha, "lora_alpha")
    else:
        translation.set_value("method.lora_alpha", 2 * config.lora_rank, "lora_rank", "lora_alpha")
    translation.set_value("method.lora_dropout", config.lora_dropout, "lora_dropout")
    translation.set_value("method.target_modules", _targets(config.lora_target), "lora_target")
    translation.set_if_enabled("method.modules_to_save", config.additional_target, "additional_target")
    translation.set_if_enabled("method.use_rslora", config.use_rslora, "use_rslora")
    translation.set_if_enabled("method.use_dora", config.use_dora, "use_dora")
    translation.set_if_enabled("method.loraplus_lr_ratio", config.loraplus_lr_ratio, "loraplus_lr_ratio")
    translation.set_if_enabled("method.init_lora_weights", "pissa" if config.pissa_init else None, "pissa_init")


def _oft(translation: Translation) -> None:
    config = translation.config
    translation.set_value("method.oft_block_size", config.oft_block_size, "oft_block_size")
    translation.set_value("method.module_dropout", config.module_dropout, "module_dropout")
    translation.set_value("method.target_modules", _targets(config.oft_target), "oft_target")
    if config.additional_target:
        translation.refuse("additional_target", "not supported with OFT. Remove it, or set finetuning_type: lora.")


def _freeze(translation: Translation) -> None:
    config = translation.config
    translation.set_value("method.layers", config.freeze_trainable_layers, "freeze_trainable_layers")
    translation.set_value(
        "method.trainable_modules", _targets(config.freeze_trainable_modules), "freeze_trainable_modules"
    )
    translation.set_if_enabled("method.extra_modules", config.freeze_extra_modules, "freeze_extra_modules")


METHODS = {"lora": _lora, "oft": _oft, "freeze": _freeze}
"""Method type -> function that translates its options; `full` has none."""


def _targets(modules: list[str]) -> str | list[str]:
    return "all" if modules == ["all"] else modules
