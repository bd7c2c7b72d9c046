"""Unknown keys are logged once per dataset; loss switches are applied, or refused."""

import json
import logging

import pytest

from tests import tiny
from tuneline.config.sections.sources import AlignConfig
from tuneline.config.stages import RECIPES
from tuneline.data import schema
from tuneline.data.align import align, unknown_keys
from tuneline.data.corpus import Corpus, RowWriter
from tuneline.data.tokenization.loss_mask import AnswerSpan, find_loss_spans
from tuneline.errors import DataError

pytestmark = pytest.mark.usefixtures("home")


def align_rows(*rows, **config):
    with RowWriter(schema.RECORD) as writer:
        texts = [json.dumps(row) for row in rows]
        writer.write({"file": ["d.jsonl"] * len(rows), "line": list(range(1, len(rows) + 1)), "record": texts})
    return align.align(Corpus({"records": writer.rows()}, {"source": "d"}), AlignConfig(**config))


def chat(**more):
    return {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", **more}]}


def warnings(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def test_unread_keys_are_reported_once_with_count_and_first_location(caplog):
    rows = [chat(), *[{**chat(trian=False), "id": i} for i in range(300)], chat(refusal=None)]

    examples = align_rows(*rows)
    assert warnings(caplog) == []
    align.warn_about_unknown_keys(examples)

    assert examples.counts["unread_keys"] == {
        "id": {"count": 300, "first": "d.jsonl:2"},
        "messages[].trian": {"count": 300, "first": "d.jsonl:2"},
    }
    assert warnings(caplog) == [
        "sources.d: these keys are not read: 'messages[].trian' (300 times, first at d.jsonl:2). Did you mean 'train'? "
        "'id' (300 times, first at d.jsonl:2)."
    ]


@pytest.mark.parametrize(
    ("row", "config", "expected"),
    [
        ({"instruction": "a", "output": "b", "inputs": "c"}, {}, ["inputs"]),
        ({"instruction": "a", "output": "b", "prompt": "c", "input": "", "system": "", "history": []}, {}, ["prompt"]),
        (
            {"instruction": "a", "chosen": "b", "rejected": "c", "tools": "", "score": 1},
            {"format": "alpaca"},
            ["score"],
        ),
        ({**chat(), "system": "lost", "tools": [], "parallel_tool_calls": True, "images": []}, {}, ["system"]),
        (
            {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b", "content": "c"}]},
            {},
            ["conversations[].content"],
        ),
        ({"prompt": "a", "completion": "b", "label": True, "output": "c"}, {}, ["output"]),
        ({**chat(name="x", tool_call_id="y", reasoning=""), "label": True, "kto_tag": True}, {}, ["kto_tag"]),
        (
            {"prompt": [{"role": "user", "content": "a", "weigth": 0}], "chosen": "b", "rejected": "c", "margin": 1},
            {},
            ["prompt[].weigth", "margin"],
        ),
        ({"prompt": "a", "chosen": {"from": "gpt", "value": "b", "los": 0}, "rejected": "c"}, {}, ["chosen[].los"]),
        ({"prompt": "a", "responses": ["b", "c"], "output": ["d", "e"]}, {}, ["output"]),
        ({"q": "a", "a": "b", "extra": 1}, {"columns": {"instruction": "q", "output": "a"}}, ["extra"]),
        ({"text": "a", "url": "u"}, {}, ["url"]),
        (
            {
                "_prompt": [{"role": "user", "content": "a"}],
                "_response": [{"role": "assistant", "content": "b"}],
                "x": 1,
            },
            {},
            ["x"],
        ),
        (
            {"talk": [{"who": "A", "says": "a"}, {"who": "B", "says": "b", "role": "c"}]},
            {
                "format": "sharegpt",
                "columns": {"messages": "talk"},
                "tags": {"role": "who", "content": "says", "user": "A", "assistant": "B"},
            },
            ["messages[].role"],
        ),
    ],
)
def test_each_format_lists_the_keys_that_it_reads(row, config, expected):
    assert list(align_rows(row, **config).counts["unread_keys"]) == expected


def test_a_standard_example_has_no_unread_keys():
    example = schema.example("s", schema.content([schema.message("user", "a"), schema.message("assistant", "b")]))

    assert align_rows(json.loads(json.dumps({**example, "copy": 0}))).counts["unread_keys"] == {}


def test_the_report_of_many_unread_keys_is_bounded(caplog):
    examples = align_rows(*({**chat(), f"key{i}": 1} for i in range(500)))
    align.warn_about_unknown_keys(examples)

    keys = examples.counts["unread_keys"]
    assert len(keys) == unknown_keys.MAX_KEYS + 1
    assert sum(entry["count"] for entry in keys.values()) == 500
    assert keys[unknown_keys.OTHER_KEYS] == {"count": 450, "first": "d.jsonl:51"}
    assert warnings(caplog)[0].endswith("and 43 more.")


@pytest.mark.parametrize("name", ["train", "loss", "train_on_turn"])
@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "a", "chosen": "b", "rejected": "c"},
        {"prompt": "a", "completion": "b", "label": True},
        {"instruction": "a", "output": "b"},
        chat(),
        {"text": "a"},
    ],
)
def test_a_loss_switch_for_a_whole_row_is_refused(row, name):
    with pytest.raises(DataError, match=rf"d.jsonl:2: the row has '{name}': false, which is supported in turns only"):
        align_rows(row, {**row, name: False})
    assert align_rows({**row, name: True}).counts["unread_keys"] == {name: {"count": 1, "first": "d.jsonl:1"}}


TURN = {"role": "assistant", "content": "b", "loss": False}
ASKED = {"role": "user", "content": "a"}
OTHER = {"role": "assistant", "content": "c"}


@pytest.mark.parametrize(
    ("row", "loss_on"),
    [
        ({"prompt": "a", "chosen": [TURN], "rejected": "c"}, "assistant"),
        ({"prompt": "a", "chosen": "c", "rejected": TURN}, "none"),
        ({"chosen": [ASKED, TURN], "rejected": [ASKED, OTHER]}, "assistant"),
        ({"messages": [ASKED, TURN], "label": True}, "assistant"),
        ({"prompt": "a", "completion": [TURN], "label": False}, "none"),
        ({"messages": [ASKED, TURN]}, "none"),
    ],
)
def test_an_answer_required_by_a_stage_cannot_be_excluded_from_the_loss(row, loss_on):
    with pytest.raises(
        DataError, match="d.jsonl:1: the assistant turn turns its loss off, but this stage trains on that answer"
    ):
        align_rows(row, loss_on=loss_on)


@pytest.mark.parametrize(
    ("turns", "loss_on", "message"),
    [
        (
            [{**ASKED, "train": True}, OTHER],
            "assistant",
            "user turn turns its loss on.*or set tokenize.train_on",
        ),
        ([{**ASKED, "train": True}, OTHER], "none", "user turn turns its loss on.*Remove the switch."),
        ([{**ASKED, "train": False}, OTHER], "all", "user turn turns its loss off, but tokenize.train_on"),
        ([{**ASKED, "train": False}, {**OTHER, "weight": 1}], "assistant", None),
        ([{**ASKED, "train": True}, {**OTHER, "weight": 0}], "all", None),
        ([ASKED, {**OTHER, "weight": 0}, ASKED, OTHER], "none", None),
    ],
)
def test_invalid_loss_switches_are_refused_with_advice(turns, loss_on, message):
    if message is None:
        assert align_rows({"messages": turns}, loss_on=loss_on).counts["examples"] == 1
        return
    with pytest.raises(DataError, match=f"d.jsonl:1: the {message}"):
        align_rows({"messages": turns}, loss_on=loss_on)


@pytest.mark.parametrize(
    ("stage", "train_on", "loss_on"),
    [
        ("sft", "assistant", "assistant"),
        ("sft", "last_assistant", "assistant"),
        ("sft", "all", "all"),
        ("dpo", "assistant", "none"),
    ],
)
def test_the_recipe_decides_which_loss_a_switch_changes(stage, train_on, loss_on):
    content = tiny.recipe(tokenize={"train_on": train_on}, registry={"model_name": "m"})
    content["registry"] |= {"gate": {"metric": "preference_accuracy" if stage == "dpo" else "rougeL"}}
    if stage == "dpo":
        content |= {"train": {}}
    recipe = RECIPES[stage].model_validate(content | {"stage": stage})

    assert recipe.for_align(recipe.sources[0]).loss_on == loss_on


def test_an_answer_can_be_excluded_with_train_on_all():
    messages = [schema.message(role, "x", train=train) for role, train in (("user", None), ("assistant", False)) * 1]
    messages += [schema.message("user", "x"), schema.message("assistant", "x")]
    answers = [AnswerSpan(1, 3, 6), AnswerSpan(3, 8, 10)]

    assert find_loss_spans(answers, messages, 12, "all", thinking=True) == [(0, 3), (6, 12)]
