"""Short forms for a terminal: prompts, answers, and curves as five numbers."""

import re
from itertools import pairwise
from statistics import fmean

_MARKS = re.compile(r"<\|[^|>]*\|>|</?s>|\[/?INST\]")
_ROLES = re.compile(r"(?<=\|>)(?:system|user|assistant)\b|\b(?:system|user|assistant)\n")
_TURN = re.compile(r"\buser\n")


def summarize_prompt(prompt: str, width: int = 160) -> str:
    """Return the last user message without template markers; the end of it if it is long.

    Args:
        prompt: Rendered prompt.
        width: Maximum number of characters.
    """
    last = _TURN.split(prompt)[-1]
    plain = " ".join(_MARKS.sub(" ", _ROLES.sub(" ", last)).split())
    return plain if len(plain) <= width else f"... {plain[-(width - 4) :]}"


def summarize_answer(answer: str, width: int = 200) -> str:
    """Return the start of an answer, at most `width` characters."""
    plain = " ".join(answer.split())
    if not plain:
        return "(empty)"
    return plain if len(plain) <= width else f"{plain[: width - 4]} ..."


def fifth_means(values: list[float]) -> list[float]:
    """Return the mean of each fifth of the values; an empty list for fewer than five."""
    if len(values) < 5:
        return []
    edges = [round(i * len(values) / 5) for i in range(6)]
    return [fmean(values[a:b]) for a, b in pairwise(edges)]
