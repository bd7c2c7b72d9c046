"""Samples answers that a grammar allows, in place of a model."""

import random

from tuneline.serve.engines.constraint import Constraint

CLOSING = ('"', "</", "</think>")
"""Tokens that end free text; they are preferred, so that answers are short."""


def sample(tokenizer, grammar, seed, vocab_size=None, most=400):
    """Sample tokens that the masks allow; return their ids, or None if the answer is longer than `most` tokens."""
    state, ids, rng = Constraint(tokenizer, grammar, vocab_size or len(tokenizer)), [], random.Random(seed)
    closing = [i for i in range(len(tokenizer)) if tokenizer.decode([i]) in CLOSING]
    for _ in range(most):
        allowed = state.mask().nonzero()[0].tolist()
        if tokenizer.eos_token_id in allowed or (state.may_end and state.is_done):
            return ids
        preferred = [i for i in closing if i in allowed] if len(allowed) > 50 and rng.random() < 0.7 else []
        ids.append(rng.choice(preferred or allowed))
        state.accept(ids[-1])
    return None
