"""Merge: examples of several data sets -> one mixture with a held-out part, free of copies, checked against the exams.

Whether an example is held out follows from its content alone (a hash, compared with the fraction), so it stays on its
side when others come and go, and equal examples stand on one side.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator

from datasets import Dataset, concatenate_datasets

from tuneline.config.data import FEWEST_HELD_OUT, MergeConfig
from tuneline.data import benchmarks
from tuneline.data.corpus import Corpus
from tuneline.errors import DataError
from tuneline.identity import Manifest

NGRAM_WORDS = 13
"""Words in a row that count as a copy of an exam question (Brown et al. 2020, arXiv:2005.14165, appendix C)."""


def merge(examples: list[Corpus], exams: Manifest, config: MergeConfig) -> Corpus:
    """Put data sets one after another, drop exact copies, hold some out.

    Args:
        examples: One corpus a data set, in the recipe's order.
        exams: Exams whose questions are looked for in the training examples.
        config: Held-out share and seed.

    Raises:
        DataError: Nothing is left to train on, or nothing to hold out though the recipe asks for it.
    """
    rows = concatenate_datasets([corpus.only() for corpus in examples])
    ids = list(rows["id"])
    kept = _first_copies(ids)
    held_out = {i for i in kept if is_held_out(ids[i], config.validation_fraction, config.split_seed)}
    train = rows.select([i for i in kept if i not in held_out]).flatten_indices()
    validation = rows.select(sorted(held_out)).flatten_indices()
    _check_sizes(train, validation, config)
    counts = {
        "sources": [corpus.counts | corpus.identity for corpus in examples],
        "examples": len(kept),
        "exact_copies_dropped": len(ids) - len(kept),
        "train": train.num_rows,
        "validation": validation.num_rows,
        "train_share": _shares(train["source"]),
        "contaminated_exam_questions": contaminated(train, exams),
    }
    return Corpus({"train": train, "validation": validation}, {}, counts)


def is_held_out(example_id: str, fraction: float, seed: int = 0) -> bool:
    """Decide the side of an example from its id."""
    point = int.from_bytes(hashlib.sha256(f"{seed}:{example_id}".encode()).digest()[:8], "big") / 2**64
    return point < fraction


def contaminated(train: Dataset, exams: Manifest) -> dict[str, int]:
    """Count, for each exam, the questions that a training example holds: whole, or 13 words of them in a row."""
    texts = [" ".join(_words(turn["content"] for turn in row["messages"])) for row in train]
    grams = {gram for text in texts for gram in _ngrams(text.split())}
    found = {}
    for item in exams.items:
        questions = [q for subject in benchmarks.read_exam(item).test.values() for q in subject]
        found[item.name] = sum(_is_inside(question.text, texts, grams) for question in questions)
    return found


def _is_inside(question: str, texts: list[str], grams: set[tuple[str, ...]]) -> bool:
    words = list(_words([question]))
    if len(words) >= NGRAM_WORDS:
        return any(gram in grams for gram in _ngrams(words))
    whole = f" {' '.join(words)} "
    return any(whole in f" {text} " for text in texts)


def _words(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        yield from "".join(c.lower() if c.isalnum() else " " for c in text).split()


def _ngrams(words: list[str]) -> Iterator[tuple[str, ...]]:
    return zip(*(words[i:] for i in range(NGRAM_WORDS)), strict=False)


def _first_copies(ids: list[str]) -> list[int]:
    seen: dict[str, int] = {}
    for i, example_id in enumerate(ids):
        seen.setdefault(example_id, i)
    return list(seen.values())


def _shares(names: Iterable[str]) -> dict[str, float]:
    counted = Counter(names)
    return {name: round(count / counted.total(), 4) for name, count in sorted(counted.items())}


def _check_sizes(train: Dataset, validation: Dataset, config: MergeConfig) -> None:
    if not train.num_rows:
        raise DataError("merge.validation_fraction holds out every example, so none is left to train on. Lower it.")
    if config.validation_fraction and validation.num_rows < FEWEST_HELD_OUT:
        raise DataError(
            f"merge.validation_fraction {config.validation_fraction} holds out {validation.num_rows} of "
            f"{train.num_rows + validation.num_rows} examples; {FEWEST_HELD_OUT} are the fewest that can be measured. "
            "Raise it, or give more rows."
        )
