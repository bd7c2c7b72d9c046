"""Cutting long conversations: whole rounds first, then tokens, never the header nor the stop token."""

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
def reader(tiny_model):
    tokenizer = load_tokenizer_from(tiny_model)
    return ConversationEncoder(tokenizer, fast_encoder.build_encoder(tokenizer), stop_token_ids(tokenizer))


def conversation(*pairs, system=""):
    first = [schema.message("system", system)] if system else []
    turns = [part for q, a in pairs for part in (schema.message("user", q), schema.message("assistant", a))]
    return first + turns


def run(reader, messages, policy, max_length):
    return truncation.truncate(messages, lambda said: reader.read(said, "", "all"), policy, max_length)


def test_the_proportional_rule_is_llamafactorys():
    assert truncation.split_budget(100, 10, 50) == (40, 10)  # a short answer stays whole
    assert truncation.split_budget(10, 100, 50) == (10, 40)  # as does a short question
    assert truncation.split_budget(100, 100, 50) == (25, 25)
    assert truncation.split_budget(300, 100, 50) == (38, 12)


def test_right_keeps_the_first_rounds_and_the_beginning_of_the_last_answer(reader):
    messages = conversation(("one", "two"), ("three", "word " * 40), system="Be brief.")
    ((kept, ids, answers),) = run(reader, messages, "right", 90)

    text = reader.tokenizer.decode(ids)
    assert (len(ids), len(kept)) == (90, 5)
    assert "Be brief." in text
    assert text.endswith("word<|im_end|>") or text.endswith("<|im_end|>")
    assert answers[-1].end == 90


def test_right_drops_a_round_whose_question_does_not_fit(reader):
    messages = conversation(("one", "two"), ("word " * 60, "three"))

    ((kept, ids, _),) = run(reader, messages, "right", 60)

    assert [m["content"] for m in kept] == ["one", "two"]
    assert len(ids) <= 60


def test_left_keeps_the_system_message_and_the_last_rounds(reader):
    messages = conversation(("word " * 20, "two"), ("three", "four"), system="Be brief.")

    ((kept, ids, _),) = run(reader, messages, "left", 90)

    assert [m["content"] for m in kept] == ["Be brief.", "three", "four"]
    assert len(ids) <= 90


def test_left_takes_the_beginning_of_a_long_question(reader):
    ((_, ids, _),) = run(reader, conversation(("begin " + "word " * 40 + "end", "yes")), "left", 60)

    text = reader.tokenizer.decode(ids)
    assert "begin" not in text
    assert "end<|im_end|>" in text
    assert text.startswith("<|im_start|>user\n")


def test_split_gives_every_part_the_system_message(reader):
    messages = conversation(*((f"question {i}", f"answer {i}") for i in range(6)), system="Be brief.")

    parts = run(reader, messages, "split", 100)

    assert len(parts) > 1
    assert all(kept[0]["content"] == "Be brief." for kept, _, _ in parts)
    assert [m["content"] for kept, _, _ in parts for m in kept[1:]] == [m["content"] for m in messages[1:]]


@settings(deadline=None, max_examples=80)
@given(
    sizes=st.lists(st.tuples(lengths, lengths), min_size=1, max_size=4),
    policy=st.sampled_from(["right", "left", "proportional", "split"]),
    max_length=st.integers(24, 120),
)
def test_whatever_is_cut_fits_and_ends_with_a_stop_token_behind_its_header(reader, sizes, policy, max_length):
    messages = conversation(*(("ask " * a, "say " * b) for a, b in sizes))
    header = reader.tokenizer("<|im_start|>assistant\n", add_special_tokens=False)["input_ids"]

    for kept, ids, answers in run(reader, messages, policy, max_length):
        assert len(ids) <= max_length
        assert len(answers) == sum(m["role"] == "assistant" for m in kept)
        for answer in answers:
            assert ids[answer.end - 1] in reader.stop_ids
            assert ids[answer.start - len(header) : answer.start] == header
            assert answer.end - answer.start >= truncation.MIN_ANSWER_TOKENS
