"""A model that is judged: known by its hash, its weights loaded when a question has no answer in the store."""

from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path

import torch
from transformers import PreTrainedModel

from tuneline.config.sections.evaluate import EvaluateStepConfig
from tuneline.evaluation import setting
from tuneline.identity import Manifest
from tuneline.model import device, precision, value_head
from tuneline.model.checkpoint import Checkpoint
from tuneline.model.load import load_for_inference, load_model
from tuneline.model.source import manifest_folder
from tuneline.model.value_head import ValueHead


class EvaluatedModel:
    """A model by its hash; its weights are loaded when a question has no answer in the store."""

    def __init__(
        self,
        name: str,
        folder: Path,
        content_hash: str,
        load: Callable[[], PreTrainedModel] | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Name a model.

        Args:
            name: Shown beside its progress.
            folder: Its files.
            content_hash: Of its weights and of what else decides what it says.
            load: Loads it in `dtype`, where `load_model` would not do.
            dtype: How its weights are held.
        """
        self.name, self.content_hash = name, content_hash
        self._folder, self._dtype = folder, dtype
        self._load = load or partial(load_model, folder, dtype)

    @property
    def dtype(self) -> str:
        """How its weights are held, as protocols name it."""
        return str(self._dtype).removeprefix("torch.")

    @property
    def setting(self) -> dict[str, str]:
        """How it answers here: dtype, device and versions of libraries, a part of each protocol."""
        return setting.evaluation_setting(self.dtype)

    @cached_property
    def model(self) -> PreTrainedModel:
        """Load the weights, once."""
        return self._load().eval()

    @cached_property
    def head(self) -> ValueHead | None:
        """Load the head of a reward model; other models have none."""
        if not (self._folder / value_head.HEAD_FILE).is_file():
            return None
        return value_head.load_value_head(self._folder).to(self.model.device).eval()

    def release(self) -> None:
        """Let go of the weights; they are loaded again if another question needs them."""
        for part in ("model", "head"):
            self.__dict__.pop(part, None)
        device.release_memory()


def base_model(base_model: Manifest, tokenizer: Manifest, config: EvaluateStepConfig) -> EvaluatedModel:
    """Return the base model as a candidate: with the adapters it came with, and room for new tokens."""
    dtype = precision.inference_dtype(config.dtype)
    load = partial(load_for_inference, base_model, tokenizer, config.load, dtype)
    return EvaluatedModel("base model", manifest_folder(base_model), base_model.content_hash(), load, dtype)


def trained_model(model: Checkpoint, config: EvaluateStepConfig) -> EvaluatedModel:
    """Return what a training made as a candidate."""
    return stored_model("new model", model.path, model.content_hash(), config)


def stored_model(name: str, folder: Path, content_hash: str, config: EvaluateStepConfig) -> EvaluatedModel:
    """Return a model of the artifact store as a candidate, held and permitted as the recipe says."""
    dtype, allowed = (
        precision.inference_dtype(config.dtype),
        config.load.model_copy(update={"train_from_scratch": False}),
    )
    return EvaluatedModel(name, folder, content_hash, partial(load_model, folder, dtype, allowed=allowed), dtype)
