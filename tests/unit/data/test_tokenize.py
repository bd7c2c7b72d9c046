"""Masks, parity and packing of token rows."""

import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from tuneline.config.data import TokenizeConfig
from tuneline.data import schema, tokenize
from tuneline.data.corpus import Corpus
from tuneline.data.tokenizer import load_tokenizer_from
from tuneline.errors import DataError, ProofError, SourceError
from tuneline.model import source

IGNORE = tokenize.IGNORE_INDEX
words = st.text(st.characters(codec="utf-8", exclude_characters="<|>"), min_size=1, max_size=12).filter(str.strip)


@pytest.fixture(scope="session")
def tokenizer(tiny_model):
    return load_tokenizer_from(tiny_model)


def chat(*contents, trains=None):
    roles = ["user", "assistant"] * len(contents)
    trains = trains or [None] * len(contents)
    pairs = zip(roles, contents, trains, strict=False)
    return schema.example("s", [schema.message(role, content, train=train) for role, content, train in pairs])


def trained_text(tokens, tokenizer):
    return tokenizer.decode([label for label in tokens.labels if label != IGNORE])


@settings(deadline=None, max_examples=50)
@given(contents=st.lists(words, min_size=2, max_size=6).filter(lambda c: len(c) % 2 == 0))
def test_only_the_answers_and_their_stop_tokens_carry_loss(tokenizer, contents):
    tokens = tokenize.tokenize(chat(*contents), tokenizer, "assistant")

    assert trained_text(tokens, tokenizer) == "".join(f"{answer}<|im_end|>" for answer in contents[1::2])
    assert len(tokens.input_ids) == len(tokens.labels)
    assert all(label in (IGNORE, token) for token, label in zip(tokens.input_ids, tokens.labels, strict=True))


@settings(deadline=None, max_examples=50)
@given(contents=st.lists(words, min_size=2, max_size=2))
def test_the_ids_are_those_of_the_tokenizers_own_template(tokenizer, contents):
    example = chat(*contents)
    plain = [{"role": m["role"], "content": m["content"]} for m in example["messages"]]

    own = tokenize.tokenize(example, tokenizer, "assistant").input_ids

    assert own == tokenizer.apply_chat_template(plain, return_dict=True)["input_ids"]


def test_the_last_turn_alone_can_be_trained(tokenizer):
    tokens = tokenize.tokenize(chat("a", "one", "b", "two"), tokenizer, "last_assistant")

    assert trained_text(tokens, tokenizer) == "two<|im_end|>"


def test_a_turn_that_says_train_false_is_left_out(tokenizer):
    tokens = tokenize.tokenize(chat("a", "one", "b", "two", trains=[None, False, None, None]), tokenizer, "assistant")

    assert trained_text(tokens, tokenizer) == "two<|im_end|>"


def test_an_example_without_loss_is_refused(tokenizer):
    with pytest.raises(ProofError, match="carries no loss"):
        tokenize.tokenize(chat("a", "one", trains=[None, False]), tokenizer, "assistant")


@pytest.mark.parametrize(
    ("template", "error", "message"),
    [
        ("{% for m in messages %}{{ m['content'] }}{% endfor %}", ProofError, "would not learn to stop"),
        (
            "{{ messages | length }}{% for m in messages %}{{ m['content'] }}{% endfor %}",
            ProofError,
            "rewrites earlier",
        ),
        (None, SourceError, "has no chat template"),
    ],
)
def test_a_template_that_cannot_be_trained_with_is_refused(tiny_model, template, error, message):
    tokenizer = load_tokenizer_from(tiny_model)
    tokenizer.chat_template = template

    with pytest.raises(error, match=message):
        tokenize.tokenize(chat("a", "b"), tokenizer, "assistant")


def corpus(*answers):
    rows = Dataset.from_list([chat("q", answer) for answer in answers], features=schema.EXAMPLE)
    return Corpus({"train": rows, "validation": rows.select(range(1))})


@pytest.fixture
def manifest(tiny_model, home):
    return source.tokenizer_of(tiny_model)


def test_packed_rows_hold_each_example_with_its_own_positions(manifest):
    rows = tokenize.tokenize_pack(corpus("one", "two", "three"), manifest, TokenizeConfig(max_length=256)).splits[
        "train"
    ]

    (row,) = rows
    assert len(row["lengths"]) == 3
    assert [p for p in row["position_ids"] if p == 0] == [0, 0, 0]
    assert sum(row["lengths"]) == len(row["input_ids"]) == len(row["labels"])
    assert set(row["example_ids"]) == set(corpus("one", "two", "three").splits["train"]["id"])


def test_without_packing_each_example_is_a_row(manifest):
    rows = tokenize.tokenize_pack(corpus("one", "two"), manifest, TokenizeConfig(max_length=256, packing=False))

    assert rows.num_rows()["train"] == 2


def test_an_overlong_example_is_refused_or_dropped_and_counted(manifest):
    long = corpus("one", "word " * 40)

    with pytest.raises(DataError, match=r"1 of 2 examples are longer than tokenize.max_length 64; the longest has"):
        tokenize.tokenize_pack(long, manifest, TokenizeConfig(max_length=64))
    rows = tokenize.tokenize_pack(long, manifest, TokenizeConfig(max_length=64, overlong="drop"))
    assert rows.counts["train"]["overlong_dropped"] == 1


def test_coverage_counts_trained_tokens(manifest):
    counts = tokenize.tokenize_pack(corpus("one"), manifest, TokenizeConfig(max_length=256)).counts["train"]

    assert counts["coverage"] == round(counts["trained_tokens"] / counts["tokens"], 4)
