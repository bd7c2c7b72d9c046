"""Translate LlamaFactory's export keys to a recipe with `stage: export`."""

from pathlib import Path

from tuneline.config.llamafactory.data import translate_template
from tuneline.config.llamafactory.model import model_source
from tuneline.config.llamafactory.translation import Translation

DTYPES = {"auto": "keep", "float32": "float32", "bfloat16": "bfloat16", "float16": "float16"}


def translate_export(translation: Translation) -> None:
    """Translate the exported model, its format and its destination."""
    config = translation.config
    translation.add("stage", "export", "the file has an export_dir")
    if config.model_name_or_path is None:
        translation.refuse("model_name_or_path", "is required. Set a folder or a repository on the Hub.")
    else:
        source = model_source(config.model_name_or_path, config.model_revision)
        translation.set_value("model", source, "model_name_or_path", "model_revision")
    if config.adapter_name_or_path:
        adapters = [str(Path(path).resolve()) for path in config.adapter_name_or_path]
        translation.set_value("adapters", adapters, "adapter_name_or_path")
    if config.quantization_bit:
        translation.refuse(
            "quantization_bit",
            "not supported: an adapter is merged into unquantized weights, as in LlamaFactory. Remove it.",
        )
    system = translate_template(translation)
    translation.set_if_enabled("system", system or None, "default_system", "template")
    if not config.enable_thinking:
        translation.set_value("template_arguments.enable_thinking", False, "enable_thinking")
    translation.set_value("trust_remote_code", config.trust_remote_code, "trust_remote_code")
    _options(translation)


def _options(translation: Translation) -> None:
    config = translation.config
    translation.set_value("dtype", DTYPES[config.infer_dtype], "infer_dtype")
    translation.set_value("max_shard_size", f"{config.export_size}GB", "export_size")
    translation.set_value("to", str(Path(config.export_dir or "").resolve()), "export_dir")
    translation.add(
        "modelfile",
        "limited",
        "LlamaFactory does not compare the Modelfile with the chat template; Tuneline reports differences",
    )
    if config.export_hub_model_id:
        translation.set_value("push.repo_id", config.export_hub_model_id, "export_hub_model_id")
        translation.note("export_hub_model_id", "a new repository is private; set push.private: false to change that")
