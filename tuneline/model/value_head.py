"""Value head: maps the hidden state of each position to one number, a reward or the critic's value estimate.

transformers has no token-level value head, and trl removed its own. The head is separate from the model, so it works
with any base, quantized or with an adapter, and is saved in its own file. It is trained in float32. By default it is
initialized to zero: initial values are zero, and its gradient is not.
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
MODULE_NAME = "value_head"
"""Name of the submodule that the critic of PPO adds to the model."""


class ValueHead(nn.Module):
    """Linear layer from the last hidden states to one value per position."""

    def __init__(self, width: int, dropout: float = 0.0, std: float = 0.0) -> None:
        """Build a head.

        Args:
            width: Size of the hidden states.
            dropout: Dropout probability of the hidden states.
            std: Standard deviation of the initial weights; a reward model needs a small positive one.
        """
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.summary = nn.Linear(width, 1, dtype=torch.float32)
        nn.init.normal_(self.summary.weight, std=std)
        nn.init.zeros_(self.summary.bias)

    def forward(self, hidden_BTD: torch.Tensor) -> torch.Tensor:
        """Return float32 values [batch, tokens], regardless of autocast and the dtype of the hidden states."""
        with torch.autocast(hidden_BTD.device.type, enabled=False):
            return self.summary(self.dropout(hidden_BTD.to(self.summary.weight))).squeeze(-1)


def build_value_head(model: Any, dropout: float = 0.0, std: float = 0.0) -> ValueHead:
    """Build a head for a model, on its device.

    Args:
        model: A causal language model; may be quantized or have an adapter.
        dropout: Dropout probability of the hidden states.
        std: Standard deviation of the initial weights.
    """
    width = model.config.get_text_config(decoder=True).hidden_size
    return ValueHead(width, dropout, std).to(model.get_input_embeddings().weight.device)


def compute_values(model: Any, head: ValueHead, **inputs: Any) -> torch.Tensor:
    """Return the value at every position, [batch, tokens].

    Args:
        model: Language model; its active adapter, if any, is used.
        head: Result of `build_value_head`.
        inputs: Arguments of the model's forward pass, like `input_ids`; logits are computed at one position only.
    """
    return compute_values_and_logits(model, head, **{"logits_to_keep": 1, **inputs})[0]


def segment_end_values(model: Any, head: ValueHead, inputs: dict[str, Any]) -> torch.Tensor:
    """Return the value at the last token of each segment of a packed row, [segments]; `labels` are ignored."""
    model_inputs = {name: value for name, value in inputs.items() if name != "labels"}
    row_values = compute_values(model, head, **model_inputs)[0]
    return row_values[inputs["cu_seq_lens_q"][1:].to(row_values.device) - 1]


def compute_values_and_logits(model: Any, head: ValueHead, **inputs: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return values [batch, tokens] and logits of one pass, for a policy and a critic that share the model."""
    hidden_states: list[torch.Tensor] = []
    handle = _backbone(model).register_forward_hook(lambda _, args, output: hidden_states.append(output[0]))
    try:
        logits = model(**inputs).logits
    finally:
        handle.remove()
    num_tokens = inputs["input_ids"].shape[1]
    return head(hidden_states[-1][:, -num_tokens:]), logits  # without the virtual tokens of prompt learning


def save_value_head(head: ValueHead, folder: Path) -> None:
    """Write the head into the folder of its model or adapter."""
    save_file(head.state_dict(), folder / HEAD_FILE)


def has_value_head(folder: Path) -> bool:
    """Return whether a model directory is that of a reward model."""
    return (folder / HEAD_FILE).is_file()


def load_for_inference(folder: Path, model: Any) -> ValueHead:
    """Load a head onto the device of its model, in evaluation mode.

    Raises:
        SourceError: The folder has no head.
    """
    return load_value_head(folder).to(model.device).eval()


def load_value_head(folder: Path, dropout: float = 0.0) -> ValueHead:
    """Load a head written by `save_value_head`.

    Raises:
        SourceError: The folder has no head.
    """
    if not has_value_head(folder):
        raise SourceError(
            f"{folder} has no value head ({HEAD_FILE}). Give the output folder of a reward model training."
        )
    weights = load_file(folder / HEAD_FILE)
    head = ValueHead(weights["summary.weight"].shape[1], dropout)
    head.load_state_dict(weights)
    return head


def _backbone(model: Any) -> nn.Module:
    """Return the model below the language modeling head; its output is the last hidden state."""
    causal_lm = model.get_base_model() if isinstance(model, PeftModel) else model
    return causal_lm.base_model
