"""Truncation of long conversations: whole rounds first, then tokens; generation prompt and stop token are kept."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tuneline.data import schema
from tuneline.data.tokenization import truncation
from tuneline.data.tokenization.loss_mask import ConversationEncoder, stop_token_ids
from tuneline.data.tokenizer import fast_encoder
from tuneline.data.tokenizer.loader import load_tokenizer_from

lengths = st.integers(1, 40)


@pytest.fixture(scope="session")
def encoder(tiny_model):
    tokenizer = load_tokenizer_from(tiny_model)
    return ConversationEncoder(tokenizer, fast_encoder.build_encoder(tokenizer), stop_token_ids(tokenizer))


def conversation(*pairs, system=""):
    first = [schema.message("system", system)] if system else []
    turns = [part for q, a in pairs for part in (schema.message("user", q), schema.message("assistant", a))]
    return first + turns


def truncate(encoder, messages, policy, max_length):
    return truncation.truncate(messages, lambda part: encoder.encode(part, "", "all"), policy, max_length)


def test_the_proportional_rule_equals_llamafactorys():
    assert truncation.split_budget(100, 10, 50) == (40, 10)  # a short answer is remaining whole
    assert truncation.split_budget(10, 100, 50) == (10, 40)  # as does a short question
    assert truncation.split_budget(100, 100, 50) == (25, 25)
    assert truncation.split_budget(300, 100, 50) == (38, 12)


def test_right_keeps_the_first_rounds_and_the_beginning_of_the_last_answer(encoder):
    messages = conversation(("one", "two"), ("three", "word " * 40), system="Be brief.")
    ((remaining, ids, answers),) = truncate(encoder, messages, "right", 90)

    text = encoder.tokenizer.decode(ids)
    assert (len(ids), len(remaining)) == (90, 5)
    assert "Be brief." in text
    assert text.endswith("word<|im_end|>") or text.endswith("<|im_end|>")
    assert answers[-1].end == 90


def test_right_removes_a_round_whose_question_does_not_fit(encoder):
    messages = conversation(("one", "two"), ("word " * 60, "three"))

    ((remaining, ids, _),) = truncate(encoder, messages, "right", 60)

    assert [m["content"] for m in remaining] == ["one", "two"]
    assert len(ids) <= 60


def test_left_keeps_the_system_message_and_the_last_rounds(encoder):
    messages = conversation(("word " * 20, "two"), ("three", "four"), system="Be brief.")

    ((remaining, ids, _),) = truncate(encoder, messages, "left", 90)

    assert [m["content"] for m in remaining] == ["Be brief.", "three", "four"]
    assert len(ids) <= 90


def test_left_removes_the_beginning_of_a_long_question(encoder):
    ((_, ids, _),) = truncate(encoder, conversation(("begin " + "word " * 40 + "end", "yes")), "left", 60)

    text = encoder.tokenizer.decode(ids)
    assert "begin" not in text
    assert "end<|im_end|>" in text
    assert text.startswith("<|im_start|>user\n")


def test_split_repeats_the_system_message_in_every_part(encoder):
    messages = conversation(*((f"question {i}", f"answer {i}") for i in range(6)), system="Be brief.")

    parts = truncate(encoder, messages, "split", 100)

    assert len(parts) > 1
    assert all(remaining[0]["content"] == "Be brief." for remaining, _, _ in parts)
    assert [m["content"] for remaining, _, _ in parts for m in remaining[1:]] == [m["content"] for m in messages[1:]]


@settings(deadline=None, max_examples=80)
@given(
    sizes=st.lists(st.tuples(lengths, lengths), min_size=1, max_size=4),
    policy=st.sampled_from(["right", "left", "proportional", "split"]),
    max_length=st.integers(24, 120),
)
def test_truncated_conversations_fit_and_answers_keep_prompt_and_stop_token(encoder, sizes, policy, max_length):
    messages = conversation(*(("ask " * a, "say " * b) for a, b in sizes))
    header = encoder.tokenizer("<|im_start|>assistant\n", add_special_tokens=False)["input_ids"]

    for remaining, ids, answers in truncate(encoder, messages, policy, max_length):
        assert len(ids) <= max_length
        assert len(answers) == sum(m["role"] == "assistant" for m in remaining)
        for answer in answers:
            assert ids[answer.end - 1] in encoder.stop_ids
            assert ids[answer.start - len(header) : answer.start] == header
            assert answer.end - answer.start >= truncation.MIN_ANSWER_TOKENS
