"""Translate LlamaFactory's inference files (`llamafactory-cli chat`, `api`) to the settings of a server."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from tuneline.config.llamafactory.data import translate_template
from tuneline.config.llamafactory.model import model_source
from tuneline.config.llamafactory.read import FIX, LlamaFactoryFile, read
from tuneline.config.llamafactory.report import ImportReport
from tuneline.config.llamafactory.schema import LlamaFactoryConfig
from tuneline.config.llamafactory.translation import NEUTRAL_REASON, Translation
from tuneline.config.parsing import located_yaml
from tuneline.config.sections.serve import ServeConfig

ENGINES = {"huggingface": "transformers", "sglang": "transformers", "vllm": "vllm"}
TRAINING_REASON = "it only affects training"
OTHER_ENGINE_REASON = "it configures another engine"
ENGINE_PREFIXES = ("vllm_", "sglang_", "kt_")
MODEL_KEY, ADAPTER_KEY = "model_name_or_path", "adapter_name_or_path"


class InferenceConfig(LlamaFactoryConfig):
    """The keys that LlamaFactory reads for inference, with its defaults."""

    infer_backend: Literal["huggingface", "vllm", "sglang", "ktransformers"] = "huggingface"
    do_sample: bool = True
    temperature: float = 0.95
    top_p: float = 0.7
    top_k: int = 50
    num_beams: int = 1
    max_new_tokens: int | None = 1024
    repetition_penalty: float = 1.0
    length_penalty: float = 1.0
    skip_special_tokens: bool = True
    vllm_maxlen: int | None = Field(None, ge=8)
    sglang_maxlen: int | None = Field(None, ge=8)


NEUTRAL_ONLY = {
    "num_beams": (1, "beam search is not supported", "Remove it to sample, or set do_sample: false to decode greedily"),
    "length_penalty": (1.0, "it belongs to beam search, which is not supported", "Remove it"),
    "skip_special_tokens": (True, "answers have no special tokens", "Remove it"),
    "quantization_bit": (
        None,
        "weights are not quantized while they are loaded for serving",
        "Serve a quantized model",
    ),
    "rope_scaling": (None, "the context length of a served model is not extended", "Set it in the model's config.json"),
    "add_tokens": (None, "the tokenizer of a served model is not extended", "Serve the model after its training"),
    "add_special_tokens": (
        None,
        "the tokenizer of a served model is not extended",
        "Serve the model after its training",
    ),
    "use_unsloth": (False, "Unsloth does not serve models", "Remove it"),
}
"""Key -> its only supported value, why, and what to do."""


@dataclass(frozen=True)
class ImportedServing:
    """A translated inference file: the settings with absolute paths, and the report."""

    path: Path
    config: ServeConfig
    report: ImportReport


def translate_serving(path: Path, **changes: Any) -> ImportedServing:
    """Translate an inference file. Relative paths in it start at the working directory, as in LlamaFactory.

    Args:
        path: The file.
        changes: Settings that replace those of the file.

    Raises:
        RecipeError: Keys are not supported or have invalid values. One line per key: `file:line: key: message`.
    """
    source = _with_inference_keys(read(path))
    translation = ServingTranslation(source)
    _check_purpose(translation)
    _model(translation)
    _engine(translation)
    _generation(translation)
    _check_neutral(translation)
    translation.finish()
    return ImportedServing(path, _validated(translation, changes), translation.report)


class ServingTranslation(Translation):
    """A translation in which all keys of the training have no effect."""

    def _report_unused(self) -> None:
        ignored: dict[str, list[str]] = {}
        for key in self.source.content:
            if key in self._used or key == "do_train":
                continue
            reason = OTHER_ENGINE_REASON if key.startswith(ENGINE_PREFIXES) else TRAINING_REASON
            ignored.setdefault(NEUTRAL_REASON if key in NEUTRAL_ONLY else reason, []).append(key)
        self.report.ignored = ignored


def _with_inference_keys(source: LlamaFactoryFile) -> LlamaFactoryFile:
    """Validate the keys that are only read for inference."""
    content = {key: value for key, value in source.content.items() if key in InferenceConfig.model_fields}
    config, problems = located_yaml.validate(InferenceConfig, content, ())
    if problems or not isinstance(config, InferenceConfig):
        raise source.refuse([(key[:1], f"{text} {FIX}" if text.endswith(".") else text) for key, text in problems])
    return replace(source, config=config)


def _check_purpose(translation: Translation) -> None:
    """Refuse a file that trains, evaluates or exports."""
    purposes = {"train": ("do_train", "dataset"), "export": ("export_dir",), "predict": ("do_predict", "do_eval")}
    keys = purposes.get(translation.source.purpose, ())
    key = next((key for key in keys if key in translation.source.content), None)
    if key:
        translation.refuse(
            key,
            f"this file is not for inference, but for: {translation.source.purpose}. Run it with tuneline run, and "
            "serve the model that it registers.",
        )


def _model(translation: Translation) -> None:
    config = translation.config
    if config.model_name_or_path is None:
        translation.refuse(MODEL_KEY, "is required. Set a folder or a repository on the Hub.")
        return
    base = _reference(config.model_name_or_path, config.model_revision)
    adapters = config.adapter_name_or_path or []
    if len(adapters) > 1:
        translation.refuse(
            ADAPTER_KEY,
            f"names {len(adapters)} adapters, which LlamaFactory merges in order. Merge them with export_dir and "
            "tuneline run, and serve the result.",
        )
    elif adapters:
        translation.set_value("model", str(Path(adapters[0]).resolve()), ADAPTER_KEY)
        translation.set_value("base", base, MODEL_KEY, "model_revision")
        translation.note(ADAPTER_KEY, "the adapter is not merged into the weights; requests can also select the base")
    else:
        translation.set_value("model", base, MODEL_KEY, "model_revision")
    system = translate_template(translation)
    translation.set_if_enabled("system", system or None, "default_system", "template")
    if not config.enable_thinking:
        translation.set_value("chat_template_kwargs.enable_thinking", False, "enable_thinking")
    translation.set_if_enabled("trust_remote_code", config.trust_remote_code, "trust_remote_code")


def _reference(name: str, revision: str) -> str:
    """Return a model in the notation of `ServeConfig.model`."""
    source = model_source(name, revision)
    if source["type"] == "directory":
        return str(source["path"])
    return f"{source['repo_id']}@{revision}" if "revision" in source else str(source["repo_id"])


def _engine(translation: Translation) -> None:
    config = translation.config
    assert isinstance(config, InferenceConfig), "translate_serving validates the file with it"
    if config.infer_backend not in ENGINES:
        translation.refuse(
            "infer_backend", f"{config.infer_backend!r} is not supported. Set huggingface, or vllm with its own Python."
        )
        return
    translation.set_value("engine", ENGINES[config.infer_backend], "infer_backend")
    if config.infer_backend == "sglang":
        translation.note("infer_backend", "SGLang is not supported; the engine is transformers")
    maximum = config.vllm_maxlen if config.infer_backend == "vllm" else config.sglang_maxlen
    if maximum and config.infer_backend != "huggingface":
        translation.set_value("max_length", maximum, f"{config.infer_backend}_maxlen")
    translation.set_value("dtype", config.infer_dtype, "infer_dtype")
    if config.infer_dtype == "auto":
        translation.note(
            "infer_dtype", "LlamaFactory uses the data type of the stored weights; Tuneline decides by device"
        )
    if config.flash_attn != "auto":
        translation.note("flash_attn", "the engine uses the fastest attention that is installed")


def _generation(translation: Translation) -> None:
    config = translation.config
    assert isinstance(config, InferenceConfig), "translate_serving validates the file with it"
    if config.do_sample:
        translation.set_value("generation.temperature", config.temperature, "temperature")
        translation.set_value("generation.top_p", config.top_p, "top_p")
        translation.set_value("generation.top_k", max(config.top_k, 0), "top_k")
    else:
        translation.set_value("generation.temperature", 0.0, "do_sample")
    translation.set_value("generation.repetition_penalty", config.repetition_penalty, "repetition_penalty")
    if config.max_new_tokens is not None and config.max_new_tokens > 0:
        translation.set_value("generation.max_tokens", config.max_new_tokens, "max_new_tokens")


def _check_neutral(translation: Translation) -> None:
    """Refuse the values of keys that inference does not support."""
    for key, (neutral, reason, fix) in NEUTRAL_ONLY.items():
        if key in translation.source.content and (value := getattr(translation.config, key)) != neutral:
            translation.refuse(key, f"{value!r} has no counterpart: {reason}. {fix}.")


def _validated(translation: Translation, changes: dict[str, Any]) -> ServeConfig:
    """Validate the settings. Errors are reported at the LlamaFactory keys that cause them."""
    settings = {**translation.recipe, **changes}
    config, problems = located_yaml.validate(ServeConfig, settings, ())
    for key, text in problems:
        origin = translation.origin_of(key, text) or ("infer_backend" if "engine_python" in text else MODEL_KEY)
        location = f"as {'.'.join(map(str, key))} of the server: " if key else ""
        translation.refuse(origin, f"{location}{text}")
    if problems:
        translation.finish()
    assert isinstance(config, ServeConfig)
    return config
