"""Toy rewards that a tiny model can learn to earn."""


def vowels(prompts: list[str], completions: list[str], references: list[str]) -> list[float]:
    """Return ten times the share of vowels in each answer."""
    return [10 * sum(letter in "aeiou" for letter in text) / max(len(text), 1) for text in completions]


def too_few(prompts: list[str], completions: list[str], references: list[str]) -> list[float]:
    """Return one reward, however many answers there are."""
    return [0.0]
