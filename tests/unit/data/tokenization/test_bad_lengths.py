"""Examples of the wrong length or kind for a stage, from the recipe to the error."""

import re

import pytest

from tests.data_rows import ALPACA_LINES, OPENAI, lines, openai
from tuneline.errors import RecipeError

pytestmark = pytest.mark.usefixtures("home")


def test_pairs_are_not_fine_tuned_on(error_of):
    pairs = lines(*({"prompt": f"q{i}", "chosen": "a", "rejected": "b"} for i in range(40)))

    _, message = error_of({"d.jsonl": pairs})

    assert message == (
        "the mixture contains examples of kind preference; stage sft trains on chat or text. Set format, or use other "
        "data."
    )


def test_a_row_of_eighty_thousand_tokens_is_refused_with_its_length_and_its_beginning(error_of):
    rows = [*OPENAI, openai(("user", "word " * 27_000), ("assistant", "ok"))]

    _, message = error_of({"d.jsonl": lines(*rows)})

    assert message == (
        "a row of d that begins with 'word word word word word word word word ' has 108020 tokens, more than "
        "tokenize.max_length 256. Raise max_length, or set tokenize.overlong: drop, right, left, proportional or split."
    )


def test_a_budget_below_any_example_is_reported(error_of):
    _, message = error_of({"d.jsonl": ALPACA_LINES}, {"max_tokens": 10})

    assert message == "sources: d has no example within its max_tokens of 10. Raise it."


def test_wrapped_packing_refuses_chats(error_of):
    error, message = error_of({"d.jsonl": ALPACA_LINES}, tokenize={"packing": "wrapped", "max_length": 64})

    assert (error, message) == (
        RecipeError,
        "tokenize.packing: wrapped cuts a single stream of texts into rows, and the mixture contains examples of kind "
        "chat, whose answers would be separated from their prompts. Set packing: true.",
    )


@pytest.mark.parametrize("overlong", ["drop", "right", "left", "proportional", "split"])
def test_a_length_too_small_for_any_answer_is_reported_before_training(overlong, error_of):
    tokenize = {"max_length": 8, "overlong": overlong, "max_cut_fraction": 1}

    _, message = error_of({"d.jsonl": ALPACA_LINES}, tokenize=tokenize)

    assert message == "Every training example is longer than tokenize.max_length 8. Raise it."


def test_more_truncated_rows_than_allowed_are_an_error(error_of):
    rows = [*OPENAI, *(openai(("user", f"word {i} " * 60), ("assistant", "ok")) for i in range(40))]

    _, message = error_of({"d.jsonl": lines(*rows)}, tokenize={"max_length": 64, "overlong": "left"})

    counts = re.match(r"(\d+) of (\d+) ", message)
    assert message == (
        f"{counts.group(0)}examples are longer than tokenize.max_length 64 and would be truncated or dropped; "
        "tokenize.max_cut_fraction allows 10%. Raise one of the two."
    )
