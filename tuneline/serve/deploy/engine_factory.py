"""Create inference engines by name. Each engine is imported when it is used."""

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from tuneline.config.sections.load import ModelLoadOptions
from tuneline.config.sections.serve import ServeConfig
from tuneline.errors import SourceError
from tuneline.model import precision
from tuneline.serve.engines.interface import Engine


@dataclass(frozen=True)
class EngineSpec:
    """What an engine loads."""

    folder: Path
    """Folder of the model."""

    tokenizer: PreTrainedTokenizerBase
    config: ServeConfig
    adapters: dict[str, Path] = field(default_factory=dict)
    gguf: Path | None = None


EngineFactory = Callable[[EngineSpec], Engine]

LIBRARIES = {"transformers": ("torch", "transformers", "peft"), "llama_cpp": ("xllamacpp",), "vllm": ()}
"""Engine -> packages whose versions are part of the fingerprint."""


def make_engine(spec: EngineSpec) -> Engine:
    """Load an engine.

    Raises:
        SourceError: The engine is not installed.
        TunelineError: The model cannot be loaded.
    """
    return {"transformers": _transformers, "vllm": _vllm, "llama_cpp": _llama_cpp}[spec.config.engine](spec)


def engine_versions(engine: Engine) -> list[str]:
    """Return the versions that may change the answers of an engine."""
    packages = ("tuneline", *LIBRARIES.get(engine.name, ()))
    return [engine.name, str(getattr(engine, "version", "")), *(f"{name} {_version(name)}" for name in packages)]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "?"


def _transformers(spec: EngineSpec) -> Engine:
    from tuneline.serve.engines.transformers.engine import TransformersEngine

    config = spec.config
    allowed = ModelLoadOptions(trust_remote_code=config.trust_remote_code, allow_pickle=config.allow_pickle)
    engine: Engine = TransformersEngine.load(
        spec.folder,
        tokenizer=spec.tokenizer,
        options=allowed,
        adapters=spec.adapters,
        dtype=precision.inference_dtype(config.dtype),
        max_batch_size=config.max_batch_size,
        max_length=config.max_length,
    )
    return engine


def _llama_cpp(spec: EngineSpec) -> Engine:
    try:
        from tuneline.serve.engines.llama_cpp import LlamaCppEngine
    except ImportError as error:
        raise SourceError(
            f"engine: llama_cpp cannot be imported ({error}). Install it with: pip install 'tuneline[llama-cpp]'."
        ) from error
    config = spec.config
    engine: Engine = LlamaCppEngine.load(
        spec.gguf, tokenizer=spec.tokenizer, max_batch_size=config.max_batch_size, max_length=config.max_length
    )
    return engine


def _vllm(spec: EngineSpec) -> Engine:
    from tuneline.serve.engines.vllm import VllmEngine

    config = spec.config
    engine: Engine = VllmEngine.load(
        spec.folder,
        python=config.engine_python,
        tokenizer=spec.tokenizer,
        adapters=spec.adapters,
        dtype=config.dtype,
        max_batch_size=config.max_batch_size,
        max_length=config.max_length,
        trust_remote_code=config.trust_remote_code,
    )
    return engine
