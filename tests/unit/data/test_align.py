"""Alignment: records of any known format -> the one schema; what cannot be used is refused or counted."""

from typing import get_args

import pytest

from tests import tiny
from tuneline.config.data import AlignConfig, DatasetFormat, IngestConfig, SourceConfig
from tuneline.data import align, sources
from tuneline.data.formats import formats
from tuneline.errors import DataError, NotFoundError

pytestmark = pytest.mark.usefixtures("home")


def turns(messages):
    return [(message["role"], message["content"]) for message in messages]


def test_alpaca_joins_instruction_and_input_after_its_history():
    record = {"instruction": "Add", "input": "1+1", "output": "2", "history": [["Hi", "Hello"]], "system": "Be short."}

    assert turns(align.align_record(record, "alpaca")) == [
        ("system", "Be short."),
        ("user", "Hi"),
        ("assistant", "Hello"),
        ("user", "Add\n1+1"),
        ("assistant", "2"),
    ]


def test_sharegpt_roles_are_translated():
    record = {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}]}

    assert turns(align.align_record(record, "sharegpt")) == [("user", "hi"), ("assistant", "ho")]


def test_openai_messages_keep_their_train_flag():
    record = {
        "messages": [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "b", "train": False},
            {"role": "user", "content": "c"},
            {"role": "assistant", "content": "d"},
        ]
    }

    assert [message["train"] for message in align.align_record(record, "openai")] == [None, False, None, None]


def test_a_system_message_is_added_once():
    record = {"instruction": "a", "output": "b", "system": "own"}

    assert turns(align.align_record(record, "alpaca", system="ours"))[0] == ("system", "own")
    del record["system"]
    assert turns(align.align_record(record, "alpaca", system="ours"))[0] == ("system", "ours")


@pytest.mark.parametrize(
    ("format", "record", "message"),
    [
        ("alpaca", {"instruction": "a"}, r"needs 'output'; it has \['instruction'\]"),
        ("alpaca", {"instruction": "a", "output": 3}, "'output' must be text, got int 3"),
        ("alpaca", {"instruction": "a", "output": " "}, "a assistant turn is empty"),
        ("openai", {"messages": []}, "'messages' must be a list of messages"),
        ("openai", {"messages": [{"role": "robot", "content": "x"}]}, "unknown role 'robot'"),
        ("sharegpt", {"conversations": [{"from": "human", "value": "x"}]}, "ends on a user turn"),
        ("sharegpt", {"conversations": [{"from": "gpt", "value": "x"}]}, "no user turn"),
    ],
)
def test_a_row_that_cannot_be_trained_says_why(format, record, message):
    with pytest.raises(DataError, match=message):
        align.align_record(record, format)


def test_an_unknown_format_suggests_the_nearest():
    with pytest.raises(NotFoundError, match="Did you mean 'alpaca'"):
        align.align_record({}, "alpacca")


def test_every_format_that_a_recipe_can_name_is_there():
    assert set(get_args(DatasetFormat)) == set(formats)


def records(tmp_path):
    rows = [*tiny.alpaca_rows(2), {"instruction": "no answer"}, {"instruction": "q", "output": ""}]
    path = tiny.write_jsonl(tmp_path / "rows.jsonl", rows)
    manifest = sources.locate([SourceConfig(name="rows", path=path, format="alpaca")])
    return sources.ingest(manifest, IngestConfig(name="rows"))


def test_a_bad_row_is_refused_with_its_place(tmp_path):
    with pytest.raises(DataError, match=r"rows.jsonl:3: a row in alpaca format needs 'output'.* align.bad_rows: drop"):
        align.align(records(tmp_path), AlignConfig(format="alpaca"))


def test_dropped_rows_are_counted_by_reason_with_their_places(tmp_path):
    corpus = align.align(records(tmp_path), AlignConfig(format="alpaca", bad_rows="drop"))

    assert corpus.num_rows() == {"examples": 2}
    assert sum(corpus.counts["dropped"].values()) == 2
    assert corpus.counts["dropped_first"] == ["rows.jsonl:3", "rows.jsonl:4"]


def test_ids_follow_the_content_not_the_data_set():
    from tuneline.data import schema

    messages = align.align_record(tiny.alpaca_rows(1)[0], "alpaca")

    assert schema.example("a", messages)["id"] == schema.example("b", messages)["id"]


def test_counts_on_the_real_data_match_the_manifest(test_data):
    path = test_data / "llamafactory" / "alpaca_en_demo.json"
    manifest = sources.locate([SourceConfig(name="rows", path=path, format="alpaca")])

    corpus = align.align(
        sources.ingest(manifest, IngestConfig(name="rows")), AlignConfig(format="alpaca", bad_rows="drop")
    )

    assert corpus.counts["rows"] == 999
    assert corpus.counts["examples"] + sum(corpus.counts["dropped"].values()) == 999
