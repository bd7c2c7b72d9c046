"""Answers of a model in training: drawn side by side, cut where they end."""

from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from tuneline.model import padding

TokenIds = list[int]


@dataclass(frozen=True)
class GenerationOptions:
    """How answers are drawn."""

    max_new_tokens: int
    stop_id: int
    pad_id: int
    temperature: float = 1.0


@torch.no_grad()
def generate_completions(
    model: Any, prompts: list[TokenIds], drawing: GenerationOptions, *, greedy: bool = False
) -> list[TokenIds]:
    """Return the answers to prompts, each with the stop token that ends it, if one does.

    Draws from the whole distribution, whatever the model's own generation config prefers.

    Args:
        model: In evaluation mode.
        prompts: Token ids; none is empty.
        drawing: Lengths, stop token and temperature.
        greedy: Take the likeliest token each time.
    """
    ids, mask = padding.pad_left(prompts, drawing.pad_id, model.device)
    whole = {"do_sample": True, "temperature": drawing.temperature, "top_k": 0, "top_p": 1.0}
    made = model.generate(
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=drawing.max_new_tokens,
        min_new_tokens=1,
        repetition_penalty=1.0,
        pad_token_id=drawing.pad_id,
        eos_token_id=drawing.stop_id,
        **({"do_sample": False} if greedy else whole),
    )
    return [_ended(row, drawing.stop_id) for row in made[:, ids.shape[1] :].tolist()]


def _ended(ids: TokenIds, stop_id: int) -> TokenIds:
    return ids[: ids.index(stop_id) + 1] if stop_id in ids else ids


def generation_options(
    tokenizer: PreTrainedTokenizerBase, max_new_tokens: int, temperature: float = 1.0
) -> GenerationOptions:
    """Return how answers are drawn with a tokenizer: they end at its end token."""
    stop = tokenizer.eos_token_id
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else stop
    return GenerationOptions(max_new_tokens, stop, pad, temperature)
