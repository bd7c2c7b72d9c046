"""Generates completions with the model in training: batched, each truncated at its stop token."""

from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from tuneline.model import padding

TokenIds = list[int]


@dataclass(frozen=True)
class GenerationOptions:
    """Length, stop token and temperature of generated completions."""

    max_new_tokens: int
    stop_id: int
    pad_id: int
    temperature: float = 1.0


@torch.no_grad()
def generate_completions(
    model: Any, prompts: list[TokenIds], options: GenerationOptions, *, greedy: bool = False
) -> list[TokenIds]:
    """Return a completion per prompt, including the stop token if it was generated.

    Samples from the full distribution; the generation config of the model is ignored.

    Args:
        model: In evaluation mode.
        prompts: Token ids; no prompt is empty.
        options: Length, stop token and temperature.
        greedy: Take the most likely token instead of sampling.
    """
    ids, mask = padding.pad_left(prompts, options.pad_id, model.device)
    sampling = {"do_sample": True, "temperature": options.temperature, "top_k": 0, "top_p": 1.0}
    sequences = model.generate(
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=options.max_new_tokens,
        min_new_tokens=1,
        repetition_penalty=1.0,
        pad_token_id=options.pad_id,
        eos_token_id=options.stop_id,
        **({"do_sample": False} if greedy else sampling),
    )
    return [_truncate(row, options.stop_id) for row in sequences[:, ids.shape[1] :].tolist()]


def _truncate(ids: TokenIds, stop_id: int) -> TokenIds:
    return ids[: ids.index(stop_id) + 1] if stop_id in ids else ids


def generation_options(
    tokenizer: PreTrainedTokenizerBase, max_new_tokens: int, temperature: float = 1.0
) -> GenerationOptions:
    """Return the options for a tokenizer; completions end at its EOS token."""
    stop = tokenizer.eos_token_id
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else stop
    return GenerationOptions(max_new_tokens, stop, pad, temperature)
