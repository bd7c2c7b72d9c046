"""Answer prompts side by side, stopping each where the server would: at the model's own stop tokens.

Prompts are sorted by length and stand side by side as the model allows it (`together`), without computing the padding
of those that differ (`prefill`); an answer does not depend on its neighbours, to rounding. Greedy, or drawn: noise of
Gumbel added to the logits makes the greedy choice a draw (Gumbel 1954), and since the noise follows from a seed, the
prompt and the position, a drawn answer does not depend on its neighbours either.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedModel, PreTrainedTokenizerBase

from tuneline import progress
from tuneline.evaluation.generation import batching, prefill
from tuneline.identity import digest
from tuneline.model import padding


@dataclass(frozen=True)
class SamplingConfig:
    """How answers are drawn."""

    temperature: float
    seed: int


@dataclass(frozen=True)
class Answer:
    """The answer to prompt number `index`, and the wall seconds that it took: its share of the batch."""

    index: int
    text: str
    seconds: float


def generate_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    max_new_tokens: int,
    batch_size: int,
    title: str = "answers",
) -> list[str]:
    """Return the greedy answer to each rendered prompt, in order; the arguments are those of `stream`."""
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
        tokenizer: The one that rendered the prompts.
        prompts: Texts that end with the generation header.
        max_new_tokens: Tokens after which an answer is cut.
        batch_size: Prompts in one batch.
        title: Shown beside the progress.
        draw: Draw answers; None takes the likeliest token.
    """
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    with progress.bar(title, len(prompts)) as advance:
        for start in range(0, len(order), batch_size):
            members = order[start : start + batch_size]
            begun = time.perf_counter()
            texts = _answer_batch(model, tokenizer, [prompts[i] for i in members], max_new_tokens, draw)
            seconds = (time.perf_counter() - begun) / len(members)
            for i, text in zip(members, texts, strict=True):
                yield Answer(i, text, seconds)
            advance(start + len(members))


def stop_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the tokens that end an answer: the tokenizer's, and those of the model's generation config as a server."""
    said = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ids = said if isinstance(said, list) else [said]
    return sorted({int(each) for each in [*ids, tokenizer.eos_token_id] if each is not None})


@torch.inference_mode()
def _answer_batch(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[str],
    max_new_tokens: int,
    draw: SamplingConfig | None,
) -> list[str]:
    """Answer prompts at once, where the model may be asked so."""
    rows = tokenizer(prompts, add_special_tokens=False)["input_ids"]
    stops = stop_token_ids(model, tokenizer)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else stops[0]
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
    ordered = [rows[i] for i in order]
    way = batching.choose_batching(model, ordered, pad) if len(ordered[0]) > len(ordered[-1]) else "padded"
    if way == "unpadded" and prefill.has_little_padding(ordered):
        way = "padded"
    texts = [""] * len(rows)
    for members in [[i] for i in order] if way == "alone" else [order]:
        asked = [rows[i] for i in members]
        ids, mask = padding.pad_left(asked, pad, model.device)
        made = model.generate(
            input_ids=ids,
            attention_mask=mask,
            past_key_values=prefill.build_cache(model, asked, max_new_tokens, pad) if way == "unpadded" else None,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            pad_token_id=pad,
            eos_token_id=stops,
            logits_processor=LogitsProcessorList([_GumbelNoise([prompts[i] for i in members], draw)] if draw else []),
        )
        said = tokenizer.batch_decode(made[:, ids.shape[1] :], skip_special_tokens=True)
        for i, text in zip(members, said, strict=True):
            texts[i] = text.strip()
    return texts


class _GumbelNoise(LogitsProcessor):
    """Adds noise to the logits of each row from a generator of its own."""

    def __init__(self, prompts: list[str], draw: SamplingConfig) -> None:
        self._temperature = draw.temperature
        seeds = [int(digest([draw.seed, prompt])[:15], 16) for prompt in prompts]
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        uniform = torch.stack([torch.rand(scores.shape[-1], generator=each) for each in self._generators])
        gumbel = -torch.log((-torch.log(uniform.clamp_min(1e-20))).clamp_min(1e-20))
        return scores + self._temperature * gumbel.to(scores.device, scores.dtype)
