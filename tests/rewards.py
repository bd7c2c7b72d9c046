"""Reward functions that a tiny model can learn."""


def vowels(prompts: list[str], completions: list[str], references: list[str]) -> list[float]:
    """Return ten times the share of vowels in each answer."""
    return [10 * sum(letter in "aeiou" for letter in text) / max(len(text), 1) for text in completions]


def too_few(prompts: list[str], completions: list[str], references: list[str]) -> list[float]:
    """Return a single reward, whatever the number of answers."""
    return [0.0]
