"""Helpers to write and translate LlamaFactory files, and the expected result for each of its examples."""

from pathlib import Path

import pytest
import yaml

from tuneline.config import llamafactory
from tuneline.config.llamafactory import training
from tuneline.config.recipe import Recipe
from tuneline.errors import RecipeError


def optimizer(key: str, name: str) -> set[str]:
    return set() if name in training.optimizer_names() else {key}


EXPECTED: dict[str, set[str]] = {
    "extras/adam_mini/qwen2_full_sft.yaml": optimizer("use_adam_mini", "adam_mini"),
    "extras/apollo/llama3_full_sft.yaml": optimizer("use_apollo", "apollo_adamw_layerwise"),
    "extras/badam/llama3_full_sft.yaml": optimizer("use_badam", "badam"),
    "extras/dft/qwen2_full_sft.yaml": {"use_dft_loss"},
    "extras/fsdp_qlora/llama3_lora_sft.yaml": set(),
    "extras/galore/llama3_full_sft.yaml": set(),
    "extras/llama_pro/llama3_freeze_sft.yaml": {"use_llama_pro"},
    "extras/loraplus/llama3_lora_sft.yaml": set(),
    "extras/mod/llama3_full_sft.yaml": {"mixture_of_depths"},
    "extras/muon/qwen2_full_sft.yaml": optimizer("use_muon", "muon"),
    "extras/nlg_eval/llama3_lora_predict.yaml": {"do_predict", "eval_dataset"},
    "extras/oft/llama3_oft_sft.yaml": set(),
    "extras/pissa/llama3_lora_sft.yaml": set(),
    "extras/qoft/llama3_oft_sft_awq.yaml": set(),
    "extras/qoft/llama3_oft_sft_gptq.yaml": set(),
    "inference/qwen3.yaml": {"infer_backend"},
    "inference/qwen3_full_sft.yaml": {"infer_backend"},
    "inference/qwen3_lora_sft.yaml": {"infer_backend"},
    "merge_lora/qwen3_full_sft.yaml": set(),
    "merge_lora/qwen3_gptq.yaml": {"export_quantization_bit", "export_quantization_dataset"},
    "merge_lora/qwen3_lora_sft.yaml": set(),
    "train_full/qwen3_full_sft.yaml": {"deepspeed"},
    "train_lora/qwen3_lora_dpo.yaml": set(),
    "train_lora/qwen3_lora_kto.yaml": set(),
    "train_lora/qwen3_lora_pretrain.yaml": set(),
    "train_lora/qwen3_lora_reward.yaml": set(),
    "train_lora/qwen3_lora_sft.yaml": set(),
    "train_lora/qwen3_lora_sft_ds3.yaml": {"deepspeed"},
    "train_lora/qwen3_lora_sft_ray.yaml": {"dataset_dir", "ray_num_workers"},
    "train_lora/qwen3_preprocess.yaml": {"tokenized_path"},
    "train_qlora/llama3_lora_sft_aqlm.yaml": set(),
    "train_qlora/llama3_lora_sft_awq.yaml": set(),
    "train_qlora/llama3_lora_sft_gptq.yaml": set(),
    "train_qlora/qwen3_lora_sft_otfq.yaml": set(),
}
"""File -> its unsupported keys; empty if it can be imported."""


def write_config(**changes) -> Path:
    content = {"model_name_or_path": "a/b", "do_train": True, "dataset": "rows", "template": "llama3", **changes}
    path = Path("theirs.yaml")
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def translate(**changes) -> llamafactory.ImportedConfig:
    return llamafactory.translate(write_config(**changes))


def recipe_of(**changes) -> Recipe:
    return translate(**changes).config.recipe


def errors_of(**changes) -> list[str]:
    with pytest.raises(RecipeError) as error_info:
        translate(**changes)
    return str(error_info.value).splitlines()


def differences(imported: llamafactory.ImportedConfig, key: str) -> str:
    return "; ".join(text for name, text in imported.report.differs if name == key)


def every_key_is_reported(imported, content) -> bool:
    report = imported.report
    mapped = {key for value in report.mapped for key in value.keys}
    reported = mapped | {key for key, _ in report.differs} | {key for group in report.ignored.values() for key in group}
    return {key for key, value in content.items() if value is not None} - {"do_train"} <= reported
