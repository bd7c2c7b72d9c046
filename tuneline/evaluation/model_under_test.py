"""A model under evaluation: identified by its content hash, loaded only when an item has no cached score."""

from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path

import torch
from transformers import PreTrainedModel

from tuneline.config.sections.evaluate import EvaluateStepConfig
from tuneline.evaluation import environment
from tuneline.identity import Manifest
from tuneline.model import device, precision, value_head
from tuneline.model.checkpoint import Checkpoint
from tuneline.model.load import load_for_inference, load_model
from tuneline.model.source import manifest_folder
from tuneline.model.value_head import ValueHead


class EvaluatedModel:
    """A model identified by its content hash. Its weights are loaded on first use."""

    def __init__(
        self,
        name: str,
        folder: Path,
        content_hash: str,
        load: Callable[[], PreTrainedModel] | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Describe a model without loading it.

        Args:
            name: Name in progress bars.
            folder: Folder of its files.
            content_hash: Hash of the weights and of everything else that affects its output.
            load: Loader for models that `load_model` cannot load; returns the model in `dtype`.
            dtype: Data type of the weights.
        """
        self.name, self.content_hash = name, content_hash
        self._folder, self._dtype = folder, dtype
        self._load = load or partial(load_model, folder, dtype)

    @property
    def dtype(self) -> str:
        """Data type of the weights, as written in protocols."""
        return str(self._dtype).removeprefix("torch.")

    @property
    def setting(self) -> dict[str, str]:
        """Data type, device and library versions: the part of a protocol that depends on the machine."""
        return environment.evaluation_setting(self.dtype)

    @cached_property
    def model(self) -> PreTrainedModel:
        """Load the weights once."""
        return self._load().eval()

    @cached_property
    def head(self) -> ValueHead | None:
        """Load the value head of a reward model; None for other models."""
        if not value_head.has_value_head(self._folder):
            return None
        return value_head.load_for_inference(self._folder, self.model)

    def release(self) -> None:
        """Free the weights. They are loaded again on the next use."""
        for part in ("model", "head"):
            self.__dict__.pop(part, None)
        device.release_memory()


def base_model(base_model: Manifest, tokenizer: Manifest, config: EvaluateStepConfig) -> EvaluatedModel:
    """Return the base model, with the adapters of the recipe and embedding rows for new tokens."""
    dtype = precision.inference_dtype(config.dtype)
    load = partial(load_for_inference, base_model, tokenizer, config.load, dtype)
    return EvaluatedModel("base model", manifest_folder(base_model), base_model.content_hash(), load, dtype)


def trained_model(model: Checkpoint, config: EvaluateStepConfig) -> EvaluatedModel:
    """Return the model that a training produced."""
    return stored_model("new model", model.path, model.content_hash(), config)


def stored_model(name: str, folder: Path, content_hash: str, config: EvaluateStepConfig) -> EvaluatedModel:
    """Return a stored model, loaded with the data type and permissions of the recipe."""
    dtype, allowed = (
        precision.inference_dtype(config.dtype),
        config.load.model_copy(update={"train_from_scratch": False}),
    )
    return EvaluatedModel(name, folder, content_hash, partial(load_model, folder, dtype, allowed=allowed), dtype)
