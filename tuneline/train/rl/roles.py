"""Model-sharing RLHF: one base model plays policy, reference, reward model and critic, by switching adapters.

As in LlamaFactory (Zheng et al. 2024, arXiv:2403.13372, section 3.3): the policy is the base with the adapter that is
trained, the reference the base with every adapter off, so that it is the base to the bit; the reward model is the base
with the adapter that a reward training made, and its head; the critic is a head on the policy.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tuneline.data.tokenization import preference_rows
from tuneline.model import value_head
from tuneline.model.methods.base import MethodFamily
from tuneline.model.methods.peft_family import ADAPTER_NAME
from tuneline.model.value_head import ValueHead
from tuneline.train.collate import collate, move_to_device

REWARD_ADAPTER = "reward"

PromptCompletion = tuple[list[int], list[int]]
"""Token ids of a prompt, and of an answer to it."""

RewardFunction = Callable[[list[PromptCompletion], list[list[int]]], list[float]]
"""Judges spans; the second argument are the reference answers."""


@dataclass
class RewardModel:
    """The reward adapter on the policy's base, and its head."""

    model: Any
    head: ValueHead

    @torch.no_grad()
    def __call__(self, spans: list[PromptCompletion], references: list[list[int]]) -> list[float]:
        """Return the value at the last token of each answer."""
        inputs = move_to_device(collate([preference_rows.concatenate_segments(spans)]), self.model.device)
        with _as_reward_model(self.model):
            return [float(value) for value in value_head.segment_end_values(self.model, self.head, inputs)]


def attach_reward_model(model: Any, folder: Path) -> RewardModel:
    """Load the adapter that a reward training made beside the policy's, and its head."""
    model.load_adapter(str(folder), REWARD_ADAPTER, is_trainable=False)
    model.set_adapter(ADAPTER_NAME)
    return RewardModel(model, value_head.load_value_head(folder).to(model.device).eval())


def detach_reward_model(model: Any) -> None:
    """Leave the policy's adapter alone on the base."""
    if REWARD_ADAPTER in getattr(model, "peft_config", {}):
        model.delete_adapter(REWARD_ADAPTER)
        model.set_adapter(ADAPTER_NAME)


@contextmanager
def _as_reward_model(model: Any) -> Iterator[None]:
    """Let the reward adapter take part, and no other; which parameters are trained stays as it was."""
    trained = [part for part in model.parameters() if part.requires_grad]
    model.set_adapter(REWARD_ADAPTER, inference_mode=True)
    try:
        yield
    finally:
        model.set_adapter(ADAPTER_NAME)
        for part in trained:
            part.requires_grad_(True)


@contextmanager
def as_reference(family: MethodFamily, model: Any) -> Iterator[None]:
    """Let no adapter take part: the base model to the bit."""
    with family.disable_adapter(model), torch.no_grad():
        yield
