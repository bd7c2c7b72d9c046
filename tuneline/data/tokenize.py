"""Tokens and masks: rendered conversations -> `input_ids` and `labels`, then packed rows.

Proved while it runs (a failure stops the run): every trained turn ends with a trained stop token, no example is
without loss, and, for the first examples, the ids equal those of the tokenizer's own `apply_chat_template` and the
prompt's ids are a prefix of them, so that training and answering see the same tokens.
"""

from dataclasses import dataclass
from typing import Any

from datasets import Dataset, Features, List, Value
from transformers import PreTrainedTokenizerBase

from tuneline.config.data import TokenizeConfig
from tuneline.data import pack, render
from tuneline.data.corpus import Corpus
from tuneline.data.tokenizer import load_tokenizer
from tuneline.errors import DataError, ProofError
from tuneline.identity import Manifest, digest

IGNORE_INDEX = -100
CHECKED_AGAINST_TEMPLATE = 32

ROW = Features(
    {
        "input_ids": List(Value("int32")),
        "labels": List(Value("int32")),
        "position_ids": List(Value("int32")),
        "lengths": List(Value("int32")),
        "example_ids": List(Value("string")),
    }
)


@dataclass(frozen=True)
class Tokens:
    """One example: `input_ids` and `labels`, both [length]."""

    example_id: str
    input_ids: list[int]
    labels: list[int]


def tokenize_pack(mixture: Corpus, tokenizer_manifest: Manifest, config: TokenizeConfig) -> Corpus:
    """Turn a mixture into training rows.

    Returns:
        Splits `train` and `validation`; rows of `input_ids`, `labels`, `position_ids` (each [tokens in the row]),
        `lengths` (tokens of each example in the row, in order) and `example_ids`.

    Raises:
        DataError: An example is longer than a row and `overlong` says refuse.
        ProofError: A mask or the template's parity does not hold.
    """
    tokenizer = load_tokenizer(tokenizer_manifest)
    splits, counts = {}, dict[str, Any]()
    for name, examples in mixture.splits.items():
        tokens = [tokenize(row, tokenizer, config.train_on) for row in examples]
        check_parity(examples, tokens, tokenizer)
        kept, dropped = _fitting(tokens, config)
        splits[name] = _rows(kept, config)
        counts[name] = _count(kept, splits[name]) | {"overlong_dropped": dropped}
    if not splits["train"].num_rows:
        raise DataError(f"Every training example is longer than tokenize.max_length {config.max_length}. Raise it.")
    identity = {
        "tokenizer": tokenizer_manifest.content_hash(),
        "chat_template": digest(tokenizer.chat_template),
        **config.model_dump(),
    }
    return Corpus(splits, identity, counts)


def tokenize(example: dict[str, Any], tokenizer: PreTrainedTokenizerBase, train_on: str) -> Tokens:
    """Encode one example and mark what carries loss.

    Raises:
        ProofError: A trained turn has no stop token, or nothing carries loss.
    """
    rendered = render.render(example["messages"], example["tools"], tokenizer, train_on)
    encoded = tokenizer(rendered.text, add_special_tokens=False, return_offsets_mapping=True)
    ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
    labels = [IGNORE_INDEX] * len(ids)
    for start, end in rendered.trained:
        inside = [i for i, (a, b) in enumerate(offsets) if start <= a and b <= end and a < b]
        stop = max((i for i in inside if ids[i] == tokenizer.eos_token_id), default=None)
        if stop is None:
            raise ProofError(
                f"The chat template does not end the assistant's turn with {tokenizer.eos_token!r}, so the model would "
                "not learn to stop. Use a template that does."
            )
        for i in inside:
            if i <= stop:
                labels[i] = ids[i]
    if all(label == IGNORE_INDEX for label in labels):
        raise ProofError(f"Example {example['id'][:12]} carries no loss: none of its turns is trained. Leave it out.")
    return Tokens(example["id"], ids, labels)


def check_parity(examples: Dataset, tokens: list[Tokens], tokenizer: PreTrainedTokenizerBase) -> None:
    """Compare the first examples with the tokenizer's own rendering (DESIGN obligation: template parity).

    Raises:
        ProofError: The ids differ, or the prompt's ids are no prefix of the training ids.
    """
    for row, own in zip(examples.select(range(min(CHECKED_AGAINST_TEMPLATE, len(examples)))), tokens, strict=False):
        plain = [render._plain(message) for message in row["messages"]]
        theirs = tokenizer.apply_chat_template(plain, return_dict=True)["input_ids"]
        head = tokenizer(render.prompt(row["messages"], row["tools"], tokenizer)[0], add_special_tokens=False)
        if own.input_ids != theirs or own.input_ids[: len(head["input_ids"])] != head["input_ids"]:
            raise ProofError(
                f"Example {row['id'][:12]}: the ids differ from those of the tokenizer's chat template, so "
                "training and "
                "answering would not see the same tokens. Report this template."
            )


def _fitting(tokens: list[Tokens], config: TokenizeConfig) -> tuple[list[Tokens], int]:
    fitting = [item for item in tokens if len(item.input_ids) <= config.max_length]
    dropped = len(tokens) - len(fitting)
    if dropped and config.overlong == "refuse":
        longest = max(len(item.input_ids) for item in tokens)
        raise DataError(
            f"{dropped} of {len(tokens)} examples are longer than tokenize.max_length {config.max_length}; the longest "
            f"has {longest} tokens. Raise max_length, or set tokenize.overlong: drop."
        )
    return fitting, dropped


def _rows(tokens: list[Tokens], config: TokenizeConfig) -> Dataset:
    lengths = [len(item.input_ids) for item in tokens]
    bins = pack.best_fit_decreasing(lengths, config.max_length) if config.packing else [[i] for i in range(len(tokens))]
    rows = [_row([tokens[i] for i in members]) for members in bins]
    return Dataset.from_list(rows, features=ROW)


def _row(members: list[Tokens]) -> dict[str, Any]:
    """Lay examples end to end; the first token of each carries no loss, as nothing of its own stands before it."""
    return {
        "input_ids": [token for item in members for token in item.input_ids],
        "labels": [label for item in members for label in [IGNORE_INDEX, *item.labels[1:]]],
        "position_ids": [position for item in members for position in range(len(item.input_ids))],
        "lengths": [len(item.input_ids) for item in members],
        "example_ids": [item.example_id for item in members],
    }


def _count(tokens: list[Tokens], rows: Dataset) -> dict[str, Any]:
    total = sum(len(item.input_ids) for item in tokens)
    trained = sum(label != IGNORE_INDEX for item in tokens for label in item.labels)
    return {
        "examples": len(tokens),
        "rows": rows.num_rows,
        "tokens": total,
        "trained_tokens": trained,
        "coverage": round(trained / max(total, 1), 4),
    }
