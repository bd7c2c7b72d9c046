"""Rewards that a recipe can name: how near an answer is to the row's own.

Words are compared as SQuAD's script does (Rajpurkar et al. 2016, arXiv:1606.05250): without case, punctuation and
articles; the metric `token_f1` of evaluation counts the same words by the same functions.
"""

import string
from collections import Counter

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = {"a", "an", "the"}


def overlap(prompts: list[str], completions: list[str], references: list[str]) -> list[float]:
    """Return the F1 score of the words that answer and reference share, 0 to 1."""
    return [
        token_f1(normalized_words(answer), normalized_words(reference))
        for answer, reference in zip(completions, references, strict=True)
    ]


def exact(prompts: list[str], completions: list[str], references: list[str]) -> list[float]:
    """Return 1 where an answer has the words of its reference in order, else 0."""
    pairs = zip(completions, references, strict=True)
    return [float(normalized_words(answer) == normalized_words(reference)) for answer, reference in pairs]


def normalized_words(text: str) -> list[str]:
    """Return the words of a text in lower case, without punctuation and articles."""
    return [word for word in text.lower().translate(_NO_PUNCTUATION).split() if word not in _ARTICLES]


def token_f1(one: list[str], other: list[str]) -> float:
    """Return the F1 score of what two lists share, 0 to 1; of an empty list, 1 where both are."""
    if not one or not other:
        return float(one == other)
    return 2 * (Counter(one) & Counter(other)).total() / (len(one) + len(other))
