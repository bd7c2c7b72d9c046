"""A model that is judged: known by its hash, its weights loaded when a question has no answer in the store."""

from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path

from transformers import PreTrainedModel

from tuneline.config.evaluate import EvaluateStepConfig
from tuneline.identity import Manifest
from tuneline.model import value_head
from tuneline.model.checkpoint import Checkpoint
from tuneline.model.load import load_for_answers, load_model
from tuneline.model.source import folder_of
from tuneline.model.value_head import ValueHead


class Candidate:
    """A model by its hash; its weights are loaded when a question has no answer in the store."""

    def __init__(
        self, name: str, folder: Path, content_hash: str, load: Callable[[], PreTrainedModel] | None = None
    ) -> None:
        self.name, self.content_hash = name, content_hash
        self._folder = folder
        self._load = load or partial(load_model, folder)

    @cached_property
    def model(self) -> PreTrainedModel:
        """Load the weights, once."""
        return self._load().eval()

    @cached_property
    def head(self) -> ValueHead | None:
        """Load the head of a reward model; other models have none."""
        if not (self._folder / value_head.FILE).is_file():
            return None
        return value_head.load(self._folder).to(self.model.device).eval()


def base(base_model: Manifest, tokenizer: Manifest, config: EvaluateStepConfig) -> Candidate:
    """Return the base model as a candidate: with the adapters it came with, and room for new tokens."""
    load = partial(load_for_answers, base_model, tokenizer, config.load)
    return Candidate("base model", folder_of(base_model), base_model.content_hash(), load)


def trained(model: Checkpoint, config: EvaluateStepConfig) -> Candidate:
    """Return what a training made as a candidate."""
    load = partial(load_model, model.path, allowed=config.load.model_copy(update={"train_from_scratch": False}))
    return Candidate("new model", model.path, model.content_hash(), load)
