"""LlamaFactory's keys of an export -> a recipe with `stage: export`."""

from pathlib import Path

from tuneline.config.llamafactory.data import translate_template
from tuneline.config.llamafactory.model import model_source
from tuneline.config.llamafactory.translation import Translation

DTYPES = {"auto": "keep", "float32": "float32", "bfloat16": "bfloat16", "float16": "float16"}


def translate_export(notes: Translation) -> None:
    """Translate what is exported, in which form, and where it goes."""
    written = notes.written
    notes.add("stage", "export", "the file has an export_dir")
    if written.model_name_or_path is None:
        notes.refuse("model_name_or_path", "is required: give a folder or a repository of the hub.")
    else:
        source = model_source(written.model_name_or_path, written.model_revision)
        notes.put("model", source, "model_name_or_path", "model_revision")
    if written.adapter_name_or_path:
        adapters = [str(Path(path).resolve()) for path in written.adapter_name_or_path]
        notes.put("adapters", adapters, "adapter_name_or_path")
    if written.quantization_bit:
        notes.refuse("quantization_bit", "an adapter is merged into whole weights, as in LlamaFactory. Remove it.")
    system = translate_template(notes)
    notes.put_if("system", system or None, "default_system", "template")
    if not written.enable_thinking:
        notes.put("template_arguments.enable_thinking", False, "enable_thinking")
    notes.put("trust_remote_code", written.trust_remote_code, "trust_remote_code")
    _form(notes)


def _form(notes: Translation) -> None:
    written = notes.written
    notes.put("dtype", DTYPES[written.infer_dtype], "infer_dtype")
    notes.put("max_shard_size", f"{written.export_size}GB", "export_size")
    notes.put("to", str(Path(written.export_dir or "").resolve()), "export_dir")
    notes.add(
        "modelfile",
        "limited",
        "LlamaFactory writes a Modelfile without comparing; here it says for which texts it differs, if for any",
    )
    if written.export_hub_model_id:
        notes.put("push.repo_id", written.export_hub_model_id, "export_hub_model_id")
        notes.tell(
            "export_hub_model_id", "a repository that is made is private; set push.private: false to change that"
        )
