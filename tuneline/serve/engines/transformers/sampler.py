"""Choose the next token of a request from its logits.

Order, as in transformers: repetition penalty, presence and frequency penalties, logit bias, grammar, temperature,
top_k, top_p, min_p. Log-probabilities are those of the unmodified logits. A seeded request draws from its own random
generator, so that its answer does not depend on other requests, up to rounding.
"""

from collections import Counter
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from tuneline.serve.engines.interface import GenerationRequest

NUM_CANDIDATES = 1024
"""Tokens that are sorted for top_p; all tokens are sorted only if these do not reach top_p."""


class Constraint(Protocol):
    """The tokens that a grammar allows."""

    def mask(self) -> NDArray[np.bool_]:
        """Return which tokens are allowed next [vocabulary]."""
        ...

    def accept(self, token: int) -> None:
        """Advance by a token."""
        ...


class Sampler:
    """Sampling state of one request."""

    def __init__(self, request: GenerationRequest, constraint: Constraint | None = None) -> None:
        self._request, self._sampling, self._constraint = request, request.sampling, constraint
        self._generator = torch.Generator()
        seed = self._sampling.seed
        if seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(seed % 2**63)
        self._counts: Counter[int] = Counter()
        self._prompt = set(request.prompt_ids)
        self._bias = (
            torch.tensor(list(self._sampling.logit_bias)),
            torch.tensor(list(self._sampling.logit_bias.values())),
        )
        self.is_plain_greedy = self._is_plain_greedy()
        """Whether the next token is the largest logit, whatever came before."""

    def _is_plain_greedy(self) -> bool:
        sampling = self._sampling
        return (
            sampling.temperature == 0
            and self._constraint is None
            and not sampling.logit_bias
            and sampling.repetition_penalty == 1
            and not sampling.presence_penalty
            and not sampling.frequency_penalty
        )

    def choose(self, logits: torch.Tensor) -> int:
        """Return the next token.

        Args:
            logits: Unmodified logits [vocabulary], float32, on the CPU; they are not changed.

        Raises:
            ValueError: The grammar failed.
        """
        scores = self._adjusted(logits)
        if self._sampling.temperature == 0:
            return int(scores.argmax())
        return self._draw(scores / self._sampling.temperature)

    def accept(self, token: int) -> None:
        """Record a token of the answer."""
        self._counts[token] += 1
        if self._constraint is not None and token not in self._request.stop_ids:
            self._constraint.accept(token)

    def _adjusted(self, logits: torch.Tensor) -> torch.Tensor:
        sampling, scores = self._sampling, logits
        if sampling.repetition_penalty != 1:
            ids = torch.tensor(sorted(self._prompt | self._counts.keys()))
            old = scores[ids]
            factor = sampling.repetition_penalty
            scores = scores.index_put((ids,), torch.where(old < 0, old * factor, old / factor))
        if self._counts and (sampling.presence_penalty or sampling.frequency_penalty):
            ids = torch.tensor(list(self._counts))
            counts = torch.tensor([float(self._counts[int(token)]) for token in ids])
            change = sampling.presence_penalty + sampling.frequency_penalty * counts
            scores = scores.index_put((ids,), scores[ids] - change)
        if sampling.logit_bias:
            ids, bias = self._bias
            scores = scores.index_put((ids,), scores[ids] + bias)
        if self._constraint is not None:
            scores = scores.masked_fill(~torch.from_numpy(self._constraint.mask()), -torch.inf)
        return scores

    def _draw(self, scores: torch.Tensor) -> int:
        sampling = self._sampling
        if sampling.top_k and sampling.top_k < scores.shape[0]:
            values, ids = scores.topk(sampling.top_k)
        elif sampling.top_p < 1:
            values, ids = self._candidates(scores)
        else:
            values, ids = scores, None
        if sampling.top_p < 1:
            total = torch.logsumexp(values if sampling.top_k else scores, 0)
            before = (values - total).exp().cumsum(0) - (values - total).exp()
            values = values.masked_fill(before >= sampling.top_p, -torch.inf)
        if sampling.min_p:
            values = values.masked_fill(values < values.max() + torch.tensor(sampling.min_p).log(), -torch.inf)
        # Exponential noise: the largest probability / noise is a draw from the distribution (Gumbel 1954).
        noise = torch.empty_like(values).exponential_(generator=self._generator).clamp_min_(1e-30)
        index = int((values - values.max()).exp().div_(noise).argmax())
        return index if ids is None else int(ids[index])

    def _candidates(self, scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the sorted tokens that contain the nucleus."""
        values, ids = scores.topk(min(NUM_CANDIDATES, scores.shape[0]))
        mass = float((values - torch.logsumexp(scores, 0)).exp().sum())
        return (values, ids) if mass >= self._sampling.top_p else scores.sort(descending=True)


def top_logprobs(logits: torch.Tensor, token: int, num_top: int) -> tuple[float, tuple[tuple[int, float], ...]]:
    """Return the log-probability of a token, and the most probable tokens with theirs.

    Args:
        logits: Unmodified logits [vocabulary], float32.
        token: The chosen token.
        num_top: Number of alternatives.
    """
    total = torch.logsumexp(logits, 0)
    if not num_top:
        return float(logits[token] - total), ()
    values, ids = logits.topk(num_top)
    pairs = zip(ids.tolist(), (values - total).tolist(), strict=True)
    return float(logits[token] - total), tuple(pairs)
