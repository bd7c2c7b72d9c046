"""Requests that are decoded together, one token per step.

A request first computes the cache of its prompt: short prompts together, a long one in chunks, so that it delays the
running answers only by one chunk. Then it joins the batch. Models whose output depends on padding, or whose cache
is not one of keys and values, are decoded one request at a time, which `verify_batching` finds out at the start.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from math import isnan

import torch
from transformers import DynamicCache, PreTrainedModel

from tuneline.evaluation.generation.batching import logit_tolerance, uses_sparse_attention
from tuneline.model import padding
from tuneline.model.logit_distance import max_relative_diff
from tuneline.serve.engines.interface import FinishReason, GenerationRequest, Token
from tuneline.serve.engines.transformers import sampler
from tuneline.serve.engines.transformers.batch_cache import BatchCache, is_batchable

PREFILL_CHUNK = 256
"""Prompt tokens that are computed between two decoding steps."""

PROBE_LENGTHS, PROBE_STEPS = (24, 9), 4

logger = logging.getLogger(__name__)


@dataclass
class Slot:
    """A request in the engine."""

    request: GenerationRequest
    sampler: sampler.Sampler
    emit: Callable[[Token | BaseException], None]
    """Receives the tokens of the answer, or the error that ended it; called from the decoding thread."""

    cancelled: bool = False
    num_tokens: int = 0
    cache: DynamicCache | None = None
    """Cache of the prompt, until the request joins the batch; for a model without batching, of the whole answer."""

    num_prefilled: int = 0
    last_token: int = -1


@dataclass
class Batch:
    """The requests of one adapter."""

    model: PreTrainedModel
    together: bool
    """Whether rows of different lengths are computed in one forward pass."""

    rows: list[Slot] = field(default_factory=list)
    _cache: BatchCache | None = None

    def prefill_together(self, slots: list[Slot]) -> None:
        """Compute several short prompts in one forward pass; their requests join the batch, or end."""
        cache, logits = compute_prompts(self.model, [slot.request.prompt_ids for slot in slots])
        self._advance(slots, logits)
        for row, slot in enumerate(slots):
            if not self._has_ended(slot):
                self._join(slot, cache, row)

    def prefill(self, slot: Slot) -> bool:
        """Compute one chunk of a prompt; return whether the request has joined the batch, or ended."""
        ids = slot.request.prompt_ids
        if slot.cache is None:
            slot.cache = DynamicCache() if self.together else DynamicCache(config=self.model.config)
        end = min(slot.num_prefilled + PREFILL_CHUNK, len(ids)) if self.together else len(ids)
        logits = self._forward(ids[slot.num_prefilled : end], slot)
        slot.num_prefilled = end
        if end < len(ids):
            return False
        self._advance([slot], logits)
        if not self._has_ended(slot):
            self._join(slot, slot.cache, 0)
        return True

    def step(self) -> None:
        """Decode one token of each row."""
        self._drop([slot for slot in self.rows if slot.cancelled])
        if not self.rows:
            return
        if self._cache is None:
            for slot in self.rows:
                self._advance([slot], self._forward([slot.last_token], slot))
        else:
            logits = decode_step(self.model, self._cache, [slot.last_token for slot in self.rows])
            self._advance(self.rows, logits)
        self._drop([slot for slot in self.rows if self._has_ended(slot)])

    def _forward(self, ids: list[int], slot: Slot) -> torch.Tensor:
        """Compute tokens of one request; return the logits of the last one [1, vocabulary]."""
        output = self.model(
            input_ids=torch.tensor([ids], device=self.model.device),
            past_key_values=slot.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        last: torch.Tensor = output.logits[:, -1]
        return last

    def _join(self, slot: Slot, prefilled: DynamicCache, row: int) -> None:
        if self.together:
            if self._cache is None:
                self._cache = BatchCache(len(prefilled.layers))
            self._cache.add(prefilled, row, len(slot.request.prompt_ids))
            slot.cache = None
        self.rows.append(slot)

    def _drop(self, slots: list[Slot]) -> None:
        for slot in slots:
            index = self.rows.index(slot)
            if self._cache is not None:
                self._cache.remove(index)
                self.rows[index] = self.rows[-1]
                self.rows.pop()
            else:
                self.rows.pop(index)
            slot.cache = None
        if not self.rows:
            self._cache = None

    def _advance(self, slots: list[Slot], logits: torch.Tensor) -> None:
        """Choose the next token of each request and emit it.

        Args:
            slots: The requests.
            logits: [requests, vocabulary].
        """
        greedy = logits.argmax(-1).tolist()
        needs_logits = any(not slot.sampler.is_plain_greedy or slot.request.top_logprobs is not None for slot in slots)
        values = logits.float().cpu() if needs_logits else None
        for i, slot in enumerate(slots):
            try:
                self._accept(slot, greedy[i], values[i] if values is not None else None)
            except ValueError as error:  # its grammar failed; the other requests go on
                slot.cancelled = True
                slot.emit(error)

    def _accept(self, slot: Slot, greedy: int, logits: torch.Tensor | None) -> None:
        plain = slot.sampler.is_plain_greedy
        token = greedy if plain or logits is None else slot.sampler.choose(logits)
        slot.sampler.accept(token)
        slot.last_token = token
        slot.num_tokens += 1
        logprob: float | None = None
        top: tuple[tuple[int, float], ...] = ()
        if slot.request.top_logprobs is not None and logits is not None:
            logprob, top = sampler.top_logprobs(logits, token, slot.request.top_logprobs)
        slot.emit(Token(token, logprob, top, self._finish(slot)))

    @staticmethod
    def _finish(slot: Slot) -> FinishReason | None:
        if slot.last_token in slot.request.stop_ids:
            return "stop"
        return "length" if slot.num_tokens >= slot.request.max_tokens else None

    def _has_ended(self, slot: Slot) -> bool:
        return self._finish(slot) is not None or slot.cancelled


def compute_prompts(model: PreTrainedModel, prompts: list[list[int]]) -> tuple[DynamicCache, torch.Tensor]:
    """Compute prompts in one forward pass, padded on the left.

    Returns:
        Their states, and the logits of their last tokens [prompts, vocabulary].
    """
    ids, mask = padding.pad_left(prompts, 0, model.device)
    cache = DynamicCache()
    output = model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=(mask.cumsum(-1) - 1).clamp_min(0),
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    return cache, output.logits[:, -1]


def decode_step(model: PreTrainedModel, cache: BatchCache, tokens: list[int]) -> torch.Tensor:
    """Compute one more token of each row; return its logits [rows, vocabulary]."""
    cache.begin_step()
    output = model(
        input_ids=torch.tensor(tokens, device=model.device)[:, None],
        attention_mask=cache.mask(model.device),
        position_ids=cache.positions(model.device),
        past_key_values=cache,
        use_cache=True,
    )
    cache.end_step()
    logits: torch.Tensor = output.logits[:, -1]
    return logits


@torch.inference_mode()
def verify_batching(model: PreTrainedModel) -> bool:
    """Return whether rows of different lengths can be computed together without changing the output.

    Two prompts are decoded separately and together, after they were computed one by one and together, and the logits
    are compared.
    """
    if uses_sparse_attention(model) or not is_batchable(DynamicCache(config=model.config)):
        logger.warning("Requests are decoded one at a time: the cache of this architecture cannot be batched.")
        return False
    vocabulary = model.config.get_text_config().vocab_size
    generator = torch.Generator().manual_seed(0)
    prompts = [torch.randint(vocabulary, (length,), generator=generator).tolist() for length in PROBE_LENGTHS]
    try:
        separate = [_probe(model, [[prompt]]) for prompt in prompts]
        batches = [_probe(model, groups) for groups in ([[prompt] for prompt in prompts], [prompts])]
    except (RuntimeError, ValueError, IndexError, AttributeError, TypeError) as error:
        logger.warning("Requests are decoded one at a time: %s", str(error).splitlines()[0])
        return False
    differences = [
        max_relative_diff(alone[step][0], batch[step][row])
        for batch in batches
        for row, alone in enumerate(separate)
        for step in range(PROBE_STEPS)
    ]
    worst = max(differences)
    if isnan(worst) or worst > logit_tolerance(model):
        logger.warning("Requests are decoded one at a time: in a batch, logits differ by %.2g of their spread.", worst)
        return False
    return True


def _probe(model: PreTrainedModel, groups: list[list[list[int]]]) -> list[torch.Tensor]:
    """Return the logits [rows, vocabulary] of some steps, with fixed tokens after the prompts.

    Args:
        model: Causal language model.
        groups: Prompts; those of a group are computed together, and join the batch.
    """
    cache: BatchCache | None = None
    for group in groups:
        prefilled, _ = compute_prompts(model, group)
        cache = cache or BatchCache(len(prefilled.layers))
        for row, prompt in enumerate(group):
            cache.add(prefilled, row, len(prompt))
    assert cache is not None
    prompts = [prompt for group in groups for prompt in group]
    steps = (decode_step(model, cache, [prompt[step] for prompt in prompts]) for step in range(PROBE_STEPS))
    return [logits.float().cpu() for logits in steps]
