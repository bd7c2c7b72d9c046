"""Rewards that a recipe can name: how near an answer is to the row's own, and whether it is brief."""

import re
from collections import Counter

WORD = re.compile(r"\w+")


def overlap(prompts: list[str], completions: list[str], references: list[str]) -> list[float]:
    """Return the F1 score of the words that answer and reference share (as in SQuAD, Rajpurkar et al. 2016)."""
    return [_f1(_words(answer), _words(reference)) for answer, reference in zip(completions, references, strict=True)]


def exact(prompts: list[str], completions: list[str], references: list[str]) -> list[float]:
    """Return 1 where an answer has the words of its reference in order, else 0."""
    pairs = zip(completions, references, strict=True)
    return [float(_words(answer) == _words(reference)) for answer, reference in pairs]


def _words(text: str) -> list[str]:
    return WORD.findall(text.lower())


def _f1(one: list[str], other: list[str]) -> float:
    shared = sum((Counter(one) & Counter(other)).values())
    return 2 * shared / (len(one) + len(other)) if shared else 0.0
