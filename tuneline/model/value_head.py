"""A head that reads one number off each position: the reward of a text so far, or what a policy expects of it.

transformers has none for token-wise values, and trl's is gone. The head stands beside the model, so that it works with
a base of any type, quantized or with an adapter, and is saved by itself. It is trained and computes in float32; it
starts at zero, so that at first it expects nothing and pushes nobody, and its gradient is not zero.
"""

# B batch, T tokens, D width

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import nn

from tuneline.errors import SourceError
from tuneline.model import source

HEAD_FILE = source.REWARD_HEAD_FILE


class ValueHead(nn.Module):
    """One linear map from the last hidden states to a number."""

    def __init__(self, width: int, dropout: float = 0.0, std: float = 0.0) -> None:
        """Make a head.

        Args:
            width: Of the hidden states.
            dropout: Share of the hidden state left out in training.
            std: Of the initial weights; a reward model that ranks from its first step on wants a small one.
        """
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.summary = nn.Linear(width, 1, dtype=torch.float32)
        nn.init.normal_(self.summary.weight, std=std)
        nn.init.zeros_(self.summary.bias)

    def forward(self, hidden_BTD: torch.Tensor) -> torch.Tensor:
        """Return values [batch, tokens], in float32 whatever the hidden states and the autocast are in."""
        with torch.autocast(hidden_BTD.device.type, enabled=False):
            return self.summary(self.dropout(hidden_BTD.to(self.summary.weight))).squeeze(-1)


def build_value_head(model: Any, dropout: float = 0.0, std: float = 0.0) -> ValueHead:
    """Make a head that fits a model, on its device.

    Args:
        model: A causal language model, quantized or with an adapter or plain.
        dropout: Share of the hidden state left out in training.
        std: Of the initial weights.
    """
    width = model.config.get_text_config(decoder=True).hidden_size
    return ValueHead(width, dropout, std).to(model.get_input_embeddings().weight.device)


def compute_values(model: Any, head: ValueHead, **inputs: Any) -> torch.Tensor:
    """Return the value at every position, [batch, tokens].

    Args:
        model: Its adapter, if it has one, takes part as it is set.
        head: Of `attach`.
        inputs: What the model's forward takes, `input_ids` first of all; logits are computed at one position only.
    """
    return compute_values_and_logits(model, head, **{"logits_to_keep": 1, **inputs})[0]


def segment_end_values(model: Any, head: ValueHead, inputs: dict[str, Any]) -> torch.Tensor:
    """Return the value at the last token of each segment of a packed row, [segments]; `labels` are not looked at."""
    rest = {name: value for name, value in inputs.items() if name != "labels"}
    everywhere = compute_values(model, head, **rest)[0]
    return everywhere[inputs["cu_seq_lens_q"][1:].to(everywhere.device) - 1]


def compute_values_and_logits(model: Any, head: ValueHead, **inputs: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return values [batch, tokens] and logits of one pass, for a policy that shares the model with its critic."""
    seen: list[torch.Tensor] = []
    handle = _backbone(model).register_forward_hook(lambda _, args, output: seen.append(output[0]))
    try:
        logits = model(**inputs).logits
    finally:
        handle.remove()
    num_tokens = inputs["input_ids"].shape[1]
    return head(seen[-1][:, -num_tokens:]), logits  # virtual tokens of a trained prompt stand in front


def save_value_head(head: ValueHead, folder: Path) -> None:
    """Write the head beside the model or the adapter that it belongs to."""
    save_file(head.state_dict(), folder / HEAD_FILE)


def load_value_head(folder: Path, dropout: float = 0.0) -> ValueHead:
    """Read what `save` wrote.

    Raises:
        SourceError: The folder has no head.
    """
    if not (folder / HEAD_FILE).is_file():
        raise SourceError(f"{folder} has no value head ({HEAD_FILE}). Give a folder that a reward training wrote.")
    weights = load_file(folder / HEAD_FILE)
    head = ValueHead(weights["summary.weight"].shape[1], dropout)
    head.load_state_dict(weights)
    return head


def _backbone(model: Any) -> nn.Module:
    """Return the part of a causal language model below its head, whose output is the last hidden state."""
    plain = model.get_base_model() if isinstance(model, PeftModel) else model
    return plain.base_model
