"""LlamaFactory's keys of the model and the method -> `model`, `load` and `method` of a recipe."""

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
"""LlamaFactory's only ratio of shifted sparse attention."""


def model_source(name: str, revision: str = "main") -> dict[str, Any]:
    """Return where a model is: a folder that is there, else a repository where the name can be one."""
    if not Path(name).is_dir() and re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", name):
        pinned = {} if revision == "main" else {"revision": revision}
        return {"type": "hub", "repo_id": name, **pinned}
    return {"type": "directory", "path": str(Path(name).resolve())}


def translate_model(notes: Translation) -> None:
    """Translate where the base model is, and how it is held."""
    written = notes.written
    if written.model_name_or_path is None:
        notes.refuse("model_name_or_path", "is required: give a folder or a repository of the hub.")
    else:
        source = model_source(written.model_name_or_path, written.model_revision)
        notes.put("model", source, "model_name_or_path", "model_revision")
    _adapters(notes)
    for key in ("trust_remote_code", "train_from_scratch"):
        notes.put_if(f"load.{key}", getattr(written, key), key)
    notes.put_if("load.new_tokens", written.add_tokens, "add_tokens")
    notes.put_if("load.new_special_tokens", written.add_special_tokens, "add_special_tokens")
    _precision(notes)
    notes.put("load.attention", ATTENTION[written.flash_attn], "flash_attn")
    notes.put_if("load.s2_group_size_ratio", GROUP_RATIO if written.shift_attn else None, "shift_attn")
    if written.rope_scaling:
        notes.put("load.rope_scaling", {"rope_type": written.rope_scaling}, "rope_scaling")
        notes.tell("rope_scaling", "positions are stretched by the exact ratio; LlamaFactory rounds it up")
    recompute = "none" if written.disable_gradient_checkpointing else "full"
    notes.put("load.gradient_checkpointing", recompute, "disable_gradient_checkpointing")
    _kernels(notes)
    _quantization(notes)


def _adapters(notes: Translation) -> None:
    written = notes.written
    if not written.adapter_name_or_path:
        return
    paths = [str(Path(path).resolve()) for path in written.adapter_name_or_path]
    uses = ["merge"] * (len(paths) - 1) + ["merge" if written.create_new_adapter else "continue"]
    adapters = [{"path": path, "use": use} for path, use in zip(paths, uses, strict=True)]
    notes.put("load.adapters", adapters, "adapter_name_or_path", "create_new_adapter")


def _precision(notes: Translation) -> None:
    written = notes.written
    asked = {"pure_bf16": "pure_bfloat16", "bf16": "bfloat16", "fp16": "float16"}
    found = [key for key in asked if getattr(written, key)]
    if "fp16" in found and len(found) > 1:
        notes.refuse("fp16", f"{found[0]} is set as well, and a training has one precision. Keep one of the two.")
    if found:
        notes.put("load.dtype", asked[found[0]], *found)
        return
    notes.add(
        "load.dtype",
        "auto",
        "no precision is set; LlamaFactory holds weights as they are stored, here the "
        "device decides, and the run says what it took",
    )


def _kernels(notes: Translation) -> None:
    written = notes.written
    liger = [key for key in ("enable_liger_kernel", "use_liger_kernel") if getattr(written, key)]
    if liger and written.use_unsloth:
        notes.refuse(liger[0], "use_unsloth is set as well, and both replace the same layers. Keep one of the two.")
    if written.use_unsloth:
        notes.put("load.kernels", "unsloth", "use_unsloth")
    elif liger:
        notes.put("load.kernels", "liger", *liger)


def _quantization(notes: Translation) -> None:
    written = notes.written
    bits, how = written.quantization_bit, written.quantization_method
    if bits is None:
        return
    if how not in ("bnb", "bitsandbytes"):
        notes.refuse("quantization_method", f"{how!r} is not made here while loading. Set bnb, with 4 or 8 bits.")
    if bits not in (4, 8):
        notes.refuse("quantization_bit", f"expected 4 or 8 bits, got {bits!r}. Set one of them.")
    if bits == 8:
        notes.put("load.quantization", {"type": "bnb_8bit"}, "quantization_bit", "quantization_method")
        return
    how_exactly = {
        "type": "bnb_4bit",
        "bnb_4bit_quant_type": written.quantization_type,
        "bnb_4bit_use_double_quant": written.double_quantization,
    }
    asked = ("quantization_bit", "quantization_method", "quantization_type", "double_quantization")
    notes.put("load.quantization", how_exactly, *asked)


def translate_method(notes: Translation) -> None:
    """Translate what is trained."""
    kind = notes.written.finetuning_type
    notes.put("method.type", kind, "finetuning_type")
    if kind in METHODS:
        METHODS[kind](notes)


def _lora(notes: Translation) -> None:
    written = notes.written
    notes.put("method.r", written.lora_rank, "lora_rank")
    if written.lora_alpha:
        notes.put("method.lora_alpha", written.lora_alpha, "lora_alpha")
    else:
        notes.put("method.lora_alpha", 2 * written.lora_rank, "lora_rank", "lora_alpha")
    notes.put("method.lora_dropout", written.lora_dropout, "lora_dropout")
    notes.put("method.target_modules", _targets(written.lora_target), "lora_target")
    notes.put_if("method.modules_to_save", written.additional_target, "additional_target")
    notes.put_if("method.use_rslora", written.use_rslora, "use_rslora")
    notes.put_if("method.use_dora", written.use_dora, "use_dora")
    notes.put_if("method.loraplus_lr_ratio", written.loraplus_lr_ratio, "loraplus_lr_ratio")
    notes.put_if("method.init_lora_weights", "pissa" if written.pissa_init else None, "pissa_init")


def _oft(notes: Translation) -> None:
    written = notes.written
    notes.put("method.oft_block_size", written.oft_block_size, "oft_block_size")
    notes.put("method.module_dropout", written.module_dropout, "module_dropout")
    notes.put("method.target_modules", _targets(written.oft_target), "oft_target")
    if written.additional_target:
        notes.refuse("additional_target", "OFT trains no whole modules beside here. Remove it, or take lora.")


def _freeze(notes: Translation) -> None:
    written = notes.written
    notes.put("method.layers", written.freeze_trainable_layers, "freeze_trainable_layers")
    notes.put("method.trainable_modules", _targets(written.freeze_trainable_modules), "freeze_trainable_modules")
    notes.put_if("method.extra_modules", written.freeze_extra_modules, "freeze_extra_modules")


METHODS = {"lora": _lora, "oft": _oft, "freeze": _freeze}
"""Kind of method -> what translates its values; `full` has none."""


def _targets(words: list[str]) -> str | list[str]:
    return "all" if words == ["all"] else words
