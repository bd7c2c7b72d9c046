"""Prompts of rows with and without an answer, in every format."""

import pytest

from tests import tiny
from tuneline.config.sections.sources import FORMATS, AlignConfig, Columns, IngestConfig, SourceConfig, Tags
from tuneline.data.align import prompts
from tuneline.data.ingest import ingest
from tuneline.errors import DataError

USER, ANSWER = {"role": "user", "content": "Q?"}, {"role": "assistant", "content": "A."}
HUMAN, GPT = {"from": "human", "value": "Q?"}, {"from": "gpt", "value": "A."}
CALL = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}
WITH_ANSWER = {
    "alpaca": {"instruction": "Q?", "output": "A."},
    "openai": {"messages": [USER, ANSWER]},
    "sharegpt": {"conversations": [HUMAN, GPT]},
    "preference": {"prompt": "Q?", "chosen": "A.", "rejected": "B."},
    "kto": {"prompt": "Q?", "completion": "A.", "label": True},
    "standard": {"_prompt": [USER], "_response": [ANSWER], "_system": "", "_tools": ""},
    "text": {"text": "Q?"},
}
WITHOUT_ANSWER = {
    "alpaca": [{"instruction": "Q?"}, {"instruction": "Q?", "output": ""}, {"prompt": "Q?"}],
    "openai": [{"messages": [USER]}, {"messages": [USER, {"role": "assistant", "content": None}]}, {"prompt": [USER]}],
    "sharegpt": [{"conversations": [HUMAN]}, {"conversations": [HUMAN, {"from": "gpt", "value": ""}]}],
}


@pytest.fixture
def read(tmp_path, home):
    def read(rows, **options):
        path = tiny.write_jsonl(tmp_path / "rows.jsonl", rows)
        manifest = ingest.locate_sources([SourceConfig(name="rows", path=path)])
        return prompts.read_prompts(ingest.ingest(manifest, IngestConfig(name="rows")), AlignConfig(**options))

    return read


def contents(row):
    return [(message["role"], message["content"]) for message in row.messages]


def test_every_format_is_covered():
    assert set(WITH_ANSWER) == set(FORMATS)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("detected", [True, False], ids=["detected", "named"])
def test_the_answer_of_a_row_is_the_reference(read, format, detected):
    result = read([WITH_ANSWER[format]], format="auto" if detected else format)

    (row,) = result.rows
    assert result.counts["format"] == format
    if format == "text":
        assert (row.text, row.messages, row.reference) == ("Q?", [], None)
    else:
        assert (contents(row), row.reference) == ([("user", "Q?")], "A.")
    assert (row.place, row.id) == ("rows.jsonl:1", "rows.jsonl:1")


@pytest.mark.parametrize(
    ("format", "record"), [(format, record) for format, records in WITHOUT_ANSWER.items() for record in records]
)
def test_rows_without_an_answer_have_no_reference(read, format, record):
    result = read([record, WITH_ANSWER[format]])

    assert result.counts["format"] == format
    first, second = result.rows
    assert (contents(first), first.reference) == ([("user", "Q?")], None)
    assert second.reference == "A."


def test_columns_and_tags_of_the_dataset_are_used(read):
    mapped = Columns(instruction="question", output="reply")
    (first, second) = read([{"question": "Q?", "reply": "A."}, {"question": "Q?", "reply": None}], columns=mapped).rows
    turns = [{"who": "me", "says": "Q?"}]
    tags = Tags(role="who", content="says", user="me", assistant="it")
    (third,) = read([{"messages": turns}], format="openai", tags=tags).rows

    assert [contents(row) for row in (first, second, third)] == [[("user", "Q?")]] * 3
    assert [row.reference for row in (first, second, third)] == ["A.", None, None]


def test_an_undesirable_answer_and_a_tool_call_are_no_references(read):
    (kto,) = read([{**WITH_ANSWER["kto"], "label": False}]).rows
    (call,) = read([{"messages": [USER, CALL]}]).rows

    assert (kto.reference, call.reference) == (None, None)
    assert contents(call) == [("user", "Q?")]


def test_a_chat_that_ends_with_a_tool_result_is_a_prompt(read):
    (row,) = read([{"messages": [USER, CALL, {"role": "tool", "content": "3"}], "tools": [{"name": "f"}]}]).rows

    assert [role for role, _ in contents(row)] == ["user", "assistant", "tool"]
    assert '"name":"f"' in row.tools


def test_ids_of_rows_and_the_system_message_are_kept(read):
    rows = read([{**WITH_ANSWER["openai"], "id": 7}, {**WITH_ANSWER["openai"], "id": "x"}], system="Be brief.").rows

    assert [row.id for row in rows] == ["7", "x"]
    assert contents(rows[0])[0] == ("system", "Be brief.")


def test_bad_rows_are_refused_with_their_place_or_dropped(read):
    bad = {"instruction": "", "output": "A."}
    good = WITH_ANSWER["alpaca"]

    with pytest.raises(DataError, match=r"rows.jsonl:2: turn 1 \(user\) is empty. Fix the row"):
        read([good, bad])
    result = read([good, bad, good], bad_rows="drop")
    assert [row.place for row in result.rows] == ["rows.jsonl:1", "rows.jsonl:3"]
    assert result.counts["dropped"] == {"empty user turn": 1}
    assert result.counts["dropped_first"][0].startswith("rows.jsonl:2: ")
    with pytest.raises(DataError, match="more than align.max_bad_fraction"):
        read([good, bad, bad, bad], bad_rows="drop")
