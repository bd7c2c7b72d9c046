"""Built-in reward functions: similarity of a completion to its reference.

Words are compared as in SQuAD's script (Rajpurkar et al. 2016, arXiv:1606.05250): without case, punctuation and
articles. The evaluation metric `token_f1` uses the same functions.
"""

import string
from collections import Counter

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = {"a", "an", "the"}


def overlap(prompts: list[str], completions: list[str], references: list[str]) -> list[float]:
    """Return the word-level F1 score of each completion and its reference, 0 to 1."""
    return [
        token_f1(normalized_words(answer), normalized_words(reference))
        for answer, reference in zip(completions, references, strict=True)
    ]


def exact(prompts: list[str], completions: list[str], references: list[str]) -> list[float]:
    """Return 1 if a completion has the same words as its reference in the same order, otherwise 0."""
    pairs = zip(completions, references, strict=True)
    return [float(normalized_words(answer) == normalized_words(reference)) for answer, reference in pairs]


def normalized_words(text: str) -> list[str]:
    """Return the words of a text in lower case, without punctuation and articles."""
    return [word for word in text.lower().translate(_NO_PUNCTUATION).split() if word not in _ARTICLES]


def token_f1(one: list[str], other: list[str]) -> float:
    """Return the F1 score of two word lists, 0 to 1; with an empty list, 1 if both are empty."""
    if not one or not other:
        return float(one == other)
    return 2 * (Counter(one) & Counter(other)).total() / (len(one) + len(other))
