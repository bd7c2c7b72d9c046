"""Model-sharing RLHF: one base model serves as policy, reference, reward model and critic by switching adapters.

As in LlamaFactory (Zheng et al. 2024, arXiv:2403.13372, section 3.3): the policy is the base with the trained adapter;
the reference is the base with all adapters disabled, bitwise identical to the base; the reward model is the base with
the adapter and head of a reward training; the critic is a head on the policy.
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
"""Token ids of a prompt and of its completion."""

RewardFunction = Callable[[list[PromptCompletion], list[list[int]]], list[float]]
"""Returns one reward per completion; the second argument contains the reference answers."""


@dataclass
class RewardModel:
    """The reward adapter on the base of the policy, and its head."""

    model: Any
    head: ValueHead

    @torch.no_grad()
    def __call__(self, spans: list[PromptCompletion], references: list[list[int]]) -> list[float]:
        """Return the value at the last token of each completion."""
        inputs = move_to_device(collate([preference_rows.concatenate_segments(spans)]), self.model.device)
        with _as_reward_model(self.model):
            return [float(value) for value in value_head.segment_end_values(self.model, self.head, inputs)]


def attach_reward_model(model: Any, folder: Path) -> RewardModel:
    """Load the adapter and the head of a reward training next to the adapter of the policy."""
    model.load_adapter(str(folder), REWARD_ADAPTER, is_trainable=False)
    model.set_adapter(ADAPTER_NAME)
    return RewardModel(model, value_head.load_for_inference(folder, model))


def detach_reward_model(model: Any) -> None:
    """Remove the reward adapter; the adapter of the policy remains."""
    if REWARD_ADAPTER in getattr(model, "peft_config", {}):
        model.delete_adapter(REWARD_ADAPTER)
        model.set_adapter(ADAPTER_NAME)


@contextmanager
def _as_reward_model(model: Any) -> Iterator[None]:
    """Activate only the reward adapter; restores which parameters require gradients."""
    trainable = [part for part in model.parameters() if part.requires_grad]
    model.set_adapter(REWARD_ADAPTER, inference_mode=True)
    try:
        yield
    finally:
        model.set_adapter(ADAPTER_NAME)
        for part in trainable:
            part.requires_grad_(True)


@contextmanager
def as_reference(family: MethodFamily, model: Any) -> Iterator[None]:
    """Disable all adapters: the model is bitwise identical to the base model."""
    with family.disable_adapter(model), torch.no_grad():
        yield
