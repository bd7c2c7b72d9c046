"""Alignment of records to examples; unusable records are refused with their location, or dropped and counted."""

import gzip

import orjson
import pytest

from tests import tiny
from tuneline.config.sections.sources import AlignConfig, Columns, IngestConfig, SourceConfig
from tuneline.data import corpus, schema
from tuneline.data.align import align
from tuneline.data.ingest import ingest
from tuneline.errors import DataError

pytestmark = pytest.mark.usefixtures("home")

DROP = {"bad_rows": "drop", "max_bad_fraction": 1.0}


def records(rows):
    """Make a corpus of records as a reader does, one per line of rows.jsonl; text rows are not changed."""
    texts = [row if isinstance(row, str) else orjson.dumps(row).decode() for row in rows]
    with corpus.RowWriter(schema.RECORD) as writer:
        writer.write({"file": ["rows.jsonl"] * len(rows), "line": range(1, len(rows) + 1), "record": texts})
    return corpus.Corpus({"records": writer.rows()}, {"source": "rows"}, {"rows": len(rows)})


def chat(*turns):
    """Make an openai record of turns like `user: hello`; `call` is an assistant's turn that calls a function."""
    call = [{"type": "function", "function": {"name": "f", "arguments": {}}}]
    pairs = [turn.split(":") for turn in turns]
    return {
        "messages": [
            {"role": "assistant", "content": "", "tool_calls": call}
            if role == "call"
            else {"role": role, "content": text}
            for role, text in pairs
        ]
    }


GOOD = chat("user:a", "assistant:b")


# what becomes of good rows


def test_examples_keep_their_order_and_have_the_name_of_their_dataset():
    rows = tiny.alpaca_rows(3000)

    aligned = align.align(records(rows), AlignConfig())

    examples = [example for batch in corpus.iter_batches(aligned.only()) for example in schema.from_arrow_batch(batch)]
    assert [example["messages"][0]["content"] for example in examples] == [row["instruction"] for row in rows]
    assert {example["source"] for example in examples} == {"rows"}
    assert examples[7]["id"] == schema.content_id(align.align_record(rows[7], "alpaca"))


def test_counts_describe_the_rows():
    rows = [GOOD, {**GOOD, "messages": GOOD["messages"] * 2}, chat("user:x", "assistant: ")]

    counts = align.align(records(rows), AlignConfig(bad_rows="drop")).counts

    assert counts == {
        "rows": 3,
        "format": "openai",
        "format_found": True,
        "examples": 2,
        "kinds": {"chat": 2},
        "dropped": {"empty assistant turn": 1},
        "dropped_first": ["rows.jsonl:3: turn 2 (assistant) is empty."],
        "unread_keys": {},
    }


def test_a_system_message_is_added_to_chats_without_one_and_never_to_texts():
    own = {"instruction": "a", "output": "b", "system": "own"}
    bare = {"instruction": "a", "output": "b", "system": ""}

    chats = align.align(records([own, bare]), AlignConfig(format="alpaca", system="ours"))
    texts = align.align(records([{"text": "x"}]), AlignConfig(system="ours"))

    assert [turns[0]["content"] for turns in chats.only()["messages"]] == ["own", "ours"]
    assert texts.only()["messages"] == [[]]


def test_without_a_system_message_in_the_recipe_none_is_added():
    examples = align.align(records([GOOD, {"messages": GOOD["messages"], "tools": []}]), AlignConfig(format="openai"))

    assert [[turn["role"] for turn in turns] for turns in examples.only()["messages"]] == [["user", "assistant"]] * 2


def test_ids_depend_on_the_content_and_not_on_the_dataset():
    content = align.align_record(tiny.alpaca_rows(1)[0], "alpaca")

    assert schema.example("a", content)["id"] == schema.example("b", content)["id"]


def test_integers_in_tool_calls_keep_all_their_digits():
    call = '{"name": "pay", "arguments": {"wei": 123456789012345678901234567890}}'
    row = f'{{"messages": [{{"role": "user", "content": "a"}}, {{"role": "assistant", "tool_calls": [{call}]}}]}}'

    examples = align.align(records([row]), AlignConfig())

    assert "123456789012345678901234567890" in examples.only()["messages"][0][1]["tool_calls"]


# what cannot be used


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        (["user:a", "assistant:b", "system:c"], "system message not first"),
        (["system:s", "system:t", "user:a", "assistant:b"], "two system messages"),
        (["assistant:a"], "no user turn"),
        (["system:s"], "no user turn"),
        (["assistant:a", "user:b", "assistant:c"], "begins with an assistant turn"),
        (["call:", "user:b", "assistant:c"], "begins with an assistant turn"),
        (["user:a"], "ends with a user turn"),
        (["user:a", "call:", "tool:b"], "ends with a tool turn"),
        (["user:a", "assistant:b", "tool:c", "assistant:d"], "tool turn without a call"),
        (["user:a", "tool:c", "assistant:d"], "tool turn without a call"),
        (["tool:c", "user:a", "assistant:d"], "tool turn without a call"),
        (["user:a", "user:b", "assistant:c"], "turns do not alternate"),
        (["user:a", "assistant:b", "assistant:c"], "turns do not alternate"),
        (["user:a", "call:", "call:"], "turns do not alternate"),
        (["user:a", "call:", "tool:b", "user:c", "assistant:d"], "turns do not alternate"),
        (["user: \n", "assistant:b"], "empty user turn"),
        (["user:a", "assistant:\t"], "empty assistant turn"),
        (["robot:a", "assistant:b"], "unknown role"),
    ],
)
def test_an_untrainable_chat_is_counted_by_its_reason(turns, reason):
    examples = align.align(records([GOOD, chat(*turns)]), AlignConfig(format="openai", **DROP))

    assert examples.counts["dropped"] == {reason: 1}


@pytest.mark.parametrize(
    "turns",
    [
        ["system:", "user:a", "assistant:b"],
        ["user:a", "call:"],
        ["user:a", "call:", "tool:", "tool:b", "call:", "tool:c", "assistant:d", "user:e", "assistant:f"],
        ["user:a", "call:", "user:never mind", "assistant:b"],
    ],
)
def test_a_chat_with_calls_or_an_empty_system_message_is_used(turns):
    assert align.align(records([chat(*turns)]), AlignConfig()).counts["examples"] == 1


def test_reasons_contain_no_values_of_rows_and_the_first_locations_do():
    rows = [GOOD, *({"messages": [{"role": f"robot{i}", "content": "x"}]} for i in range(7))]

    counts = align.align(records(rows), AlignConfig(**DROP)).counts

    assert counts["dropped"] == {"unknown role": 7}
    assert len(counts["dropped_first"]) == align.MAX_DROPPED_SHOWN
    assert counts["dropped_first"][0].startswith("rows.jsonl:2: unknown role 'robot0'.")


def test_a_bad_row_is_refused_with_its_location_and_a_fix():
    with pytest.raises(DataError, match=r"^rows.jsonl:2: a row in alpaca .* align.bad_rows: drop\.$"):
        align.align(records([*tiny.alpaca_rows(1), {"instruction": "no answer"}]), AlignConfig(format="alpaca"))


def test_a_row_that_its_reader_could_not_read_is_a_bad_row():
    rows = [GOOD, {schema.BAD_ROW_KEY: "a torn record"}]

    assert align.align(records(rows), AlignConfig(bad_rows="drop")).counts["dropped"] == {"a torn record": 1}
    with pytest.raises(DataError, match="rows.jsonl:2: a torn record"):
        align.align(records(rows), AlignConfig())


def test_an_unpaired_surrogate_is_a_bad_row():
    row = r'{"instruction": "a", "output": "\ud800"}'

    counts = align.align(records([*tiny.alpaca_rows(1), row]), AlignConfig(bad_rows="drop")).counts

    assert counts["dropped"] == {"text that is not Unicode": 1}


def test_more_bad_rows_than_the_recipe_allows_are_an_error_that_counts_them():
    rows = [*tiny.alpaca_rows(6), *[{"instruction": "a"}] * 3, {"instruction": "a", "output": ""}]
    allowed = AlignConfig(format="alpaca", bad_rows="drop", max_bad_fraction=0.4)
    stricter = allowed.model_copy(update={"max_bad_fraction": 0.39})

    assert align.align(records(rows), allowed).counts["examples"] == 6
    with pytest.raises(
        DataError, match=r"rows: 4 of 10 .* 0.39 allows \(no 'output': 3; empty assistant turn: 1\).*jsonl:7: "
    ):
        align.align(records(rows), stricter)


def test_a_dataset_without_a_good_row_is_always_an_error():
    with pytest.raises(DataError, match=r"sources.rows: none of 1 rows can be used \(no 'output': 1\)"):
        align.align(records([{"instruction": "a"}]), AlignConfig(format="alpaca", **DROP))


# detecting


@pytest.mark.parametrize(
    ("row", "format"),
    [
        ({"instruction": "a", "input": "", "output": "b", "text": "all of it"}, "alpaca"),
        ({"messages": [{"from": "human", "value": "a"}]}, "sharegpt"),
        ({"messages": [{"role": "user", "content": "a"}], "prompt": "a"}, "openai"),
        ({"conversations": [{"role": "user", "content": "a"}]}, "sharegpt"),
        ({"messages": [{"role": "user", "content": "a"}], "chosen": "b", "rejected": "c"}, "preference"),
        ({"text": "a", "label": 1}, "text"),
        ({"instruction": "a", "output": "b", "label": "animals"}, "alpaca"),
    ],
)
def test_the_most_specific_format_is_detected(row, format):
    assert align.detect_format([row]) == format


def test_rows_of_unknown_format_are_skipped_by_the_detection():
    assert align.detect_format([{"instruction": "a"}, {}, {"instruction": "a", "output": "b"}]) == "alpaca"


def test_rows_of_two_formats_are_not_read_as_one():
    with pytest.raises(
        DataError, match=r"sources.rows: the rows match several formats: openai \(2 rows\) and kto \(1 rows\)"
    ):
        align.align(records([GOOD, {**GOOD, "label": True}, GOOD]), AlignConfig())


def test_undetectable_rows_are_shown_how_to_name_their_columns():
    row = {"question": "a", "answer": "b"}

    with pytest.raises(
        DataError, match=r"\['answer', 'question'\].*`columns: {instruction: question, output: answer}`"
    ):
        align.align(records([row]), AlignConfig())

    named = AlignConfig(columns=Columns(instruction="question", output="answer"))
    assert align.align(records([row]), named).counts["format"] == "alpaca"


def test_a_misspelt_column_is_named_by_the_format_detection():
    config = AlignConfig(columns=Columns(instruction="questoin", output="answer"))

    with pytest.raises(DataError, match=r"no column 'questoin'.*Did you mean 'question'\? Correct columns.instruction"):
        align.align(records([{"question": "a", "answer": "b"}]), config)


# before a run


def test_rows_are_checked_before_a_run():
    good, bad = ("a.jsonl", 1, GOOD), ("a.jsonl", 2, chat("user:a"))

    align.check_rows([good], AlignConfig())
    align.check_rows([bad, good], AlignConfig(bad_rows="drop"))
    with pytest.raises(DataError, match=r"a.jsonl:2: the conversation ends with a user turn"):
        align.check_rows([good, bad], AlignConfig())
    with pytest.raises(DataError, match=r"a.jsonl:2: the conversation ends with a user turn"):
        align.check_rows([bad], AlignConfig(bad_rows="drop"))
    with pytest.raises(DataError, match=r"a.jsonl: the rows match no known format"):
        align.check_rows([("a.jsonl", 1, {"x": 1})], AlignConfig())


# real data


def align_file(path, columns=None, **policy):
    source = SourceConfig(name="real", path=path)
    records = ingest.ingest(ingest.locate_sources([source]), IngestConfig(name="real"))
    return align.align(records, AlignConfig(columns=Columns(**columns or {}), **{"bad_rows": "drop", **policy}))


@pytest.mark.parametrize(
    ("name", "rows", "format", "kind", "dropped"),
    [
        ("llamafactory/alpaca_en_demo.json", 999, "alpaca", "chat", {}),
        ("llamafactory/alpaca_zh_demo.json", 1000, "alpaca", "chat", {}),
        ("llamafactory/identity.json", 91, "alpaca", "chat", {}),
        ("llamafactory/dpo_en_demo.json", 300, "preference", "preference", {}),
        ("llamafactory/dpo_zh_demo.json", 300, "preference", "preference", {}),
        ("llamafactory/kto_en_demo.json", 300, "kto", "kto", {}),
        ("llamafactory/glaive_toolcall_en_demo.json", 300, "sharegpt", "chat", {}),
        ("llamafactory/c4_demo.jsonl", 300, "text", "text", {}),
        ("llamafactory/wiki_demo.txt", 30, "text", "text", {}),
        ("pubmed/pubmed_abstracts.jsonl.gz", 1000, "text", "text", {}),
        ("sft/alpaca_data_50k.jsonl.gz", 50_000, "alpaca", "chat", {"empty assistant turn": 27}),
        ("sft/oaast_sft_zh.json.gz", 689, "alpaca", "chat", {}),
        ("sharegpt/sharegpt_zh.jsonl.gz", 700, "sharegpt", "chat", {}),
        ("sharegpt/moss_multiturn.jsonl.gz", 300, "sharegpt", "chat", {}),
    ],
)
def test_the_format_of_real_data_is_detected_and_rows_are_counted(test_data, name, rows, format, kind, dropped):
    counts = align_file(test_data / name).counts

    assert (counts["rows"], counts["format"], counts["format_found"]) == (rows, format, True)
    assert counts["dropped"] == dropped
    assert counts["kinds"] == {kind: rows - sum(dropped.values())}


@pytest.mark.parametrize(
    ("name", "rows", "question", "answer"),
    [
        ("sft/gsm8k_train.jsonl.gz", 7473, "question", "answer"),
        ("summarization/xsum_eval.jsonl.gz", 1000, "document", "summary"),
        ("summarization/xsum_train.jsonl.gz", 626, "document", "summary"),
        ("summarization/cnn_dailymail_train.jsonl.gz", 300, "article", "highlights"),
        ("summarization/cnn_dailymail_eval.jsonl.gz", 100, "article", "highlights"),
        ("summarization/adgen.jsonl.gz", 770, "content", "summary"),
    ],
)
def test_columns_of_real_pairs_with_other_names_are_suggested_and_read(test_data, name, rows, question, answer):
    with pytest.raises(DataError, match=f"`columns: {{instruction: {question}, output: {answer}}}`"):
        align_file(test_data / name)

    counts = align_file(test_data / name, {"instruction": question, "output": answer}).counts
    assert (counts["format"], counts["examples"], counts["dropped"]) == ("alpaca", rows, {})


def test_all_tool_calls_of_a_real_dataset_are_read(test_data):
    examples = align_file(test_data / "llamafactory" / "glaive_toolcall_en_demo.json").only()

    assert sum(tools == "" for tools in examples["tools"]) == 109
    assert sum(turn["tool_calls"] is not None for turns in examples["messages"] for turn in turns) == 211
    assert sum(turn["role"] == "tool" for turns in examples["messages"] for turn in turns) == 211


def test_system_messages_of_real_pairs_are_kept_and_none_is_added(test_data):
    examples = align_file(test_data / "llamafactory" / "dpo_en_demo.json").only()

    assert sum(turns[0]["role"] == "system" for turns in examples["messages"]) == 80


def test_a_real_chat_with_a_missing_turn_is_refused(test_data, tmp_path):
    row = orjson.loads((test_data / "malformed" / "conversation_missing_turns.json").read_bytes())

    with pytest.raises(DataError, match=r"none of 1 rows can be used \(empty assistant turn: 1\)"):
        align_file(tiny.write_jsonl(tmp_path / "one.jsonl", [row]))


def test_irregular_real_chats_are_refused_with_their_reasons(test_data, tmp_path):
    lines = gzip.decompress((test_data / "malformed" / "sharegpt_irregular.jsonl.gz").read_bytes())
    good = orjson.dumps({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]})
    (tmp_path / "more.jsonl").write_bytes(lines + good + b"\n")

    counts = align_file(tmp_path / "more.jsonl", max_bad_fraction=0.9).counts

    assert counts["dropped"] == {"ends with a user turn": 7, "empty user turn": 1}
    assert (counts["rows"], counts["examples"]) == (9, 1)


def test_a_damaged_real_csv_file_is_refused_and_its_rows_are_counted(test_data):
    path = test_data / "malformed" / "cnn_dailymail_broken.csv.gz"
    columns = {"instruction": "article", "output": "highlights"}

    with pytest.raises(DataError, match=r"max_bad_fraction 0.5 allows \(.*blank fields only: 66713"):
        align_file(path, columns)
    counts = align_file(path, columns, max_bad_fraction=1.0).counts
    assert (counts["rows"], counts["examples"]) == (68_061, 460)
    assert sorted(counts["dropped"].values()) == [440, 448, 66_713]
