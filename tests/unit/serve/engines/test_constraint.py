"""Grammars restrict the tokens of an answer, and every answer that follows the masks is valid."""

import json
import re

import numpy as np
import pytest

from tests.grammar_sampling import sample
from tuneline.data.tokenizer.loader import load_tokenizer_from
from tuneline.serve.engines import constraint
from tuneline.serve.engines.constraint import Constraint
from tuneline.serve.engines.interface import Grammar

SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "Rome"]}, "size": {"type": "integer", "minimum": 1, "maximum": 99}},
    "required": ["city", "size"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def tokenizer(tiny_model):
    return load_tokenizer_from(tiny_model)


def generate(tokenizer, grammar, seed, **options):
    """Return the text of a sampled answer."""
    ids = sample(tokenizer, grammar, seed, **options)
    return None if ids is None else tokenizer.decode(ids)


@pytest.mark.parametrize("seed", range(5))
def test_answers_follow_a_schema(tokenizer, seed):
    value = json.loads(generate(tokenizer, Grammar("json_schema", json.dumps(SCHEMA)), seed))

    assert value["city"] in ("Paris", "Rome")
    assert 1 <= value["size"] <= 99
    assert set(value) == {"city", "size"}


def test_an_answer_of_json_object_is_an_object(tokenizer):
    texts = [generate(tokenizer, Grammar("json_object"), seed, most=60) for seed in range(4)]

    assert all(isinstance(json.loads(text), dict) for text in texts if text)
    assert any(texts)


@pytest.mark.parametrize("grammar", [Grammar("regex", "[ab]{3}c+"), Grammar("lark", "start: /[ab]{3}/ /c+/")])
def test_answers_follow_an_expression_or_a_lark_grammar(tokenizer, grammar):
    assert re.fullmatch("[ab]{3}c+", generate(tokenizer, grammar, 0))


def test_white_space_in_json_is_bounded(tokenizer):
    state = Constraint(tokenizer, Grammar("json_object"), len(tokenizer))
    space = tokenizer.convert_tokens_to_ids("Ġ")
    for token in tokenizer("{\n", add_special_tokens=False)["input_ids"]:
        state.accept(token)

    num_spaces = 0
    while state.mask()[space]:
        state.accept(space)
        num_spaces += 1

    assert num_spaces == 16


def test_logits_beyond_the_tokenizer_are_never_allowed(tokenizer):
    mask = Constraint(tokenizer, Grammar("regex", "(?s:.*)"), len(tokenizer) + 50).mask()

    assert mask.shape == (len(tokenizer) + 50,)
    assert mask.dtype == np.bool_
    assert mask[3 : len(tokenizer)].any()
    assert not mask[len(tokenizer) :].any()


def test_a_complete_answer_only_allows_its_end(tokenizer):
    state = Constraint(tokenizer, Grammar("regex", "ab"), len(tokenizer))
    for token in tokenizer("ab", add_special_tokens=False)["input_ids"]:
        assert not state.is_done
        state.accept(token)

    assert state.is_done
    assert state.may_end
    assert state.mask().nonzero()[0].tolist() == [tokenizer.eos_token_id]


def test_a_token_that_does_not_follow_is_an_error(tokenizer):
    state = Constraint(tokenizer, Grammar("regex", "ab"), len(tokenizer))

    with pytest.raises(ValueError, match="does not follow the grammar"):
        state.accept(tokenizer.convert_tokens_to_ids("c"))


@pytest.mark.parametrize(
    ("grammar", "reason"),
    [
        (Grammar("json_schema", '{"type": "objekt"}'), "Invalid type: objekt"),
        (Grammar("json_schema", '{"type": "array", "uniqueItems": true}'), r'Unimplemented keys: \["uniqueItems"\]'),
        (Grammar("json_schema", "["), "Expecting value"),
        (Grammar("regex", "(a"), "unclosed group"),
        (Grammar("lark", 'start: "a'), "lexer error"),
    ],
)
def test_an_invalid_grammar_is_refused_with_its_reason(tokenizer, grammar, reason):
    with pytest.raises(ValueError, match=reason):
        Constraint(tokenizer, grammar, len(tokenizer))


def test_the_tokenizer_is_converted_once(tokenizer):
    built = constraint.build_tokenizer(tokenizer)

    assert constraint.build_tokenizer(tokenizer) is built
    assert Constraint(built, Grammar("regex", "a"), len(tokenizer)).mask().sum() == 1
