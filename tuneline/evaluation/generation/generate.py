"""Generate answers in batches. Each answer ends at the model's stop tokens, as on a server.

Prompts are sorted by length and batched as the model allows (`batching`), without computing their padding (`prefill`).
Up to rounding, an answer does not depend on the other prompts of its batch. Decoding is greedy or sampled.
Sampling adds Gumbel noise to the logits and takes the largest (Gumbel 1954). The noise is seeded by the prompt, so a
sampled answer does not depend on its batch either.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedModel, PreTrainedTokenizerBase

from tuneline import progress
from tuneline.evaluation.generation import batching, prefill
from tuneline.identity import digest
from tuneline.model import padding


@dataclass(frozen=True)
class SamplingConfig:
    """Sampling of answers."""

    temperature: float
    seed: int


@dataclass(frozen=True)
class Answer:
    """The answer to prompt `index`, and its share of the batch's wall-clock seconds."""

    index: int
    text: str
    seconds: float
    num_tokens: int = 0
    """Number of generated tokens, with the stop token."""

    finish: Literal["stop", "length"] = "stop"
    """Whether a stop token or `max_new_tokens` ended the answer."""


def generate_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    max_new_tokens: int,
    batch_size: int,
    title: str = "answers",
) -> list[str]:
    """Return the greedy answer to each rendered prompt, in order. For the arguments see `stream_answers`."""
    texts = [""] * len(prompts)
    for answer in stream_answers(model, tokenizer, prompts, max_new_tokens, batch_size, title):
        texts[answer.index] = answer.text
    return texts


def stream_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    max_new_tokens: int,
    batch_size: int,
    title: str = "answers",
    draw: SamplingConfig | None = None,
) -> Iterator[Answer]:
    """Yield the answer to each rendered prompt, batch by batch, the longest prompts first.

    Args:
        model: Causal language model.
        tokenizer: Tokenizer that rendered the prompts.
        prompts: Texts that end with the generation prompt.
        max_new_tokens: Maximum number of tokens per answer.
        batch_size: Prompts per batch.
        title: Title of the progress bar.
        draw: Sampling; None decodes greedily.
    """
    with progress.bar(title, len(prompts)) as advance:
        num_done = 0
        for answers in stream_batches(model, tokenizer, prompts, max_new_tokens, batch_size, draw):
            yield from answers
            num_done += len(answers)
            advance(num_done)


def stream_batches(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    max_new_tokens: int,
    batch_size: int,
    draw: SamplingConfig | None = None,
) -> Iterator[list[Answer]]:
    """Yield the answers of each batch, as `stream_answers`, without a progress bar."""
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    for start in range(0, len(order), batch_size):
        members = order[start : start + batch_size]
        start_time = time.perf_counter()
        answers = _answer_batch(model, tokenizer, [prompts[i] for i in members], max_new_tokens, draw)
        seconds = (time.perf_counter() - start_time) / len(members)
        yield [Answer(i, each.text, seconds, *each[1:]) for i, each in zip(members, answers, strict=True)]


def stop_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the tokens that end an answer: EOS of the tokenizer and of the generation config, as a server does."""
    eos = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ids = eos if isinstance(eos, list) else [eos]
    return sorted({int(each) for each in [*ids, tokenizer.eos_token_id] if each is not None})


class _Decoded(NamedTuple):
    """The text of an answer, its number of tokens, and what ended it."""

    text: str
    num_tokens: int
    finish: Literal["stop", "length"]


@torch.inference_mode()
def _answer_batch(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[str],
    max_new_tokens: int,
    draw: SamplingConfig | None,
) -> list[_Decoded]:
    """Answer the prompts of one batch, batched as the model allows."""
    rows = tokenizer(prompts, add_special_tokens=False)["input_ids"]
    stops = stop_token_ids(model, tokenizer)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else stops[0]
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
    ordered = [rows[i] for i in order]
    method = batching.choose_batching(model, ordered, pad) if len(ordered[0]) > len(ordered[-1]) else "padded"
    if method == "unpadded" and prefill.has_little_padding(ordered):
        method = "padded"
    decoded: dict[int, _Decoded] = {}
    for members in [[i] for i in order] if method == "alone" else [order]:
        batch = [rows[i] for i in members]
        ids, mask = padding.pad_left(batch, pad, model.device)
        output = model.generate(
            input_ids=ids,
            attention_mask=mask,
            past_key_values=prefill.build_cache(model, batch, max_new_tokens, pad) if method == "unpadded" else None,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            pad_token_id=pad,
            eos_token_id=stops,
            logits_processor=LogitsProcessorList([_GumbelNoise([prompts[i] for i in members], draw)] if draw else []),
        )
        answers = output[:, ids.shape[1] :]
        texts = tokenizer.batch_decode(answers, skip_special_tokens=True)
        for i, text, tokens in zip(members, texts, answers.tolist(), strict=True):
            end = next((position for position, token in enumerate(tokens, start=1) if token in stops), None)
            decoded[i] = _Decoded(text.strip(), end or len(tokens), "stop" if end else "length")
    return [decoded[i] for i in range(len(rows))]


class _GumbelNoise(LogitsProcessor):
    """Add Gumbel noise to the logits, with one random generator per row."""

    def __init__(self, prompts: list[str], draw: SamplingConfig) -> None:
        self._temperature = draw.temperature
        seeds = [int(digest([draw.seed, prompt])[:15], 16) for prompt in prompts]
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        uniform = torch.stack([torch.rand(scores.shape[-1], generator=each) for each in self._generators])
        gumbel = -torch.log((-torch.log(uniform.clamp_min(1e-20))).clamp_min(1e-20))
        return scores + self._temperature * gumbel.to(scores.device, scores.dtype)
