"""Defects that were demonstrated in LlamaFactory's data worker do not occur here: one section per defect."""

import json
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from tests import tiny
from tuneline.config import load
from tuneline.config.sections.data import TokenizeConfig, TokenizeStepConfig
from tuneline.data import prepare as prepare_module
from tuneline.data import schema
from tuneline.data.chat_template import selection
from tuneline.data.corpus import Corpus, RowWriter
from tuneline.data.tokenization import tokenize, truncation
from tuneline.data.tokenization.loss_mask import AnswerSpan
from tuneline.data.tokenization.sequencer import Sequencer
from tuneline.data.tokenizer.loader import load_tokenizer, load_tokenizer_from
from tuneline.errors import DataError
from tuneline.model import attention, source
from tuneline.model.load import load_model
from tuneline.train.collate import collate

pytestmark = pytest.mark.usefixtures("home")

ALPACA = tiny.alpaca_rows(60)
POLICIES = ["right", "left", "proportional", "split"]


@pytest.fixture(scope="session")
def tokenizer(tiny_model):
    return load_tokenizer_from(tiny_model)


@pytest.fixture
def prepare_rows(tmp_path, tiny_model):
    """Return a function that makes the training rows of a recipe with one dataset."""

    def prepare(rows=ALPACA, source_keys=None, **recipe):
        path = tiny.write_jsonl(tmp_path / "data" / "d.jsonl", rows)
        small = {"sources": [{"name": "d", "path": str(path), **(source_keys or {})}], "exams": []}
        path = tiny.write_config(tmp_path / "run.yaml", tiny.recipe(**(small | recipe)))
        return prepare_module.prepare(load.load(path).recipe, source.tokenizer_manifest(tiny_model))

    return prepare


def chat(*contents):
    roles = ["user", "assistant"] * len(contents)
    turns = [schema.message(role, content) for role, content in zip(roles, contents, strict=False)]
    return schema.example("s", schema.content(turns))


def values(corpus):
    return {name: rows.to_list() for name, rows in corpus.splits.items()}


# stale tokens: `tokenized_path` returned the old rows after any change

CHANGES = {
    "template": {"template": "qwen"},
    "template of another layout": {"template": "vicuna"},
    "max_length": {"tokenize": {"max_length": 128}},
    "mask": {"tokenize": {"max_length": 256, "train_on": "all"}},
    "packing": {"tokenize": {"max_length": 256, "packing": False}},
    "number of rows": {"source_keys": {"max_rows": 50}},
    "system message": {"align": {"system": "Be brief."}},
    "held-out share": {"merge": {"validation_fraction": 0.4}},
    "one word of one row": {"rows": [*ALPACA[:-1], {**ALPACA[-1], "output": "It is not known."}]},
    "order of rows": {"rows": ALPACA[::-1]},
}


@pytest.mark.parametrize("change", CHANGES)
def test_no_relevant_change_reuses_the_old_tokens(change, prepare_rows):
    before, after = prepare_rows(), prepare_rows(**CHANGES[change])

    assert after.content_hash() != before.content_hash()
    if change != "template":  # the tiny model's own template renders the same text
        assert values(after) != values(before)


def test_without_a_change_the_identity_is_equal(prepare_rows):
    assert prepare_rows().content_hash() == prepare_rows().content_hash()
    assert values(prepare_rows()) == values(prepare_rows())


# packing: examples of a row attended to each other


@pytest.fixture(scope="module")
def models(tiny_model):
    return {kind: load_model(tiny_model, attention=kind) for kind in ("segment", "sdpa")}


def packed(examples, tiny_model):
    with RowWriter(schema.EXAMPLE) as writer:
        writer.write(schema.to_arrow_columns(examples))
    splits = dict.fromkeys(("train", "validation"), writer.rows())
    config = TokenizeStepConfig(max_length=512, overlong="drop", max_cut_fraction=1)
    return tokenize.tokenize_pack(Corpus(splits), source.tokenizer_manifest(tiny_model), config).splits["train"]


def split_examples(row):
    """Yield each example of a row as a separate row."""
    bounds = [0, *torch.tensor(row["lengths"]).cumsum(0).tolist()]
    for (a, b), length in zip(pairwise(bounds), row["lengths"], strict=True):
        yield {"input_ids": row["input_ids"][a:b], "labels": row["labels"][a:b], "lengths": [length]}


def forward_backward(model, rows):
    """Return the logits, the summed loss and the gradients of one batch of rows."""
    model.zero_grad()
    batch = collate(rows)
    labels = batch.pop("labels")
    logits = model(**batch).logits[0]
    loss = cross_entropy(logits[:-1], labels[0, 1:], reduction="sum", ignore_index=schema.IGNORE_INDEX)
    loss.backward()
    return logits.detach(), loss.detach(), [parameter.grad.clone() for parameter in model.parameters()]


answers = st.text("abc de", min_size=1, max_size=40).filter(str.strip)


@pytest.mark.parametrize("kind", ["segment", "sdpa"])
@settings(deadline=None, max_examples=6)
@given(rounds=st.lists(st.tuples(answers, answers), min_size=2, max_size=6, unique=True))
def test_a_packed_row_has_the_logits_loss_and_gradients_of_its_separate_examples(models, tiny_model, kind, rounds):
    model = models[kind]
    for row in packed([chat(*pair) for pair in rounds], tiny_model):
        separate = [forward_backward(model, [part]) for part in split_examples(row)]
        logits, loss, gradients = forward_backward(model, [row])

        torch.testing.assert_close(logits, torch.cat([result[0] for result in separate]), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(loss, sum(result[1] for result in separate), rtol=1e-4, atol=1e-4)
        for gradient, *gradients_of_examples in zip(gradients, *(result[2] for result in separate), strict=True):
            torch.testing.assert_close(gradient, sum(gradients_of_examples), rtol=1e-3, atol=1e-4)


def test_rows_of_a_real_dataset_are_isolated(test_data, tiny_model, models):
    rows = json.loads((test_data / "llamafactory" / "alpaca_en_demo.json").read_bytes())[:60]
    examples = [chat("\n".join(filter(None, [row["instruction"], row["input"]])), row["output"]) for row in rows]
    rows = packed(examples, tiny_model)

    batches = [[part["input_ids"] for part in split_examples(row)] for row in rows if len(row["lengths"]) > 1]

    assert len(batches) > 3
    assert attention.check_isolation(models["segment"], batches) < 1e-4


def test_no_example_of_a_row_is_predicted_from_another(tiny_model):
    (row,) = packed([chat(f"q{i}", f"a{i}") for i in range(5)], tiny_model)

    assert [part["labels"][0] for part in split_examples(row)] == [schema.IGNORE_INDEX] * 5
    assert row["position_ids"] == [position for length in row["lengths"] for position in range(length)]


# truncation: stop labels and generation prompts were lost silently


@settings(deadline=None, max_examples=60)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=5),
    policy=st.sampled_from(POLICIES),
    max_length=st.integers(16, 160),
)
def test_truncation_keeps_stop_labels_and_generation_prompts_and_is_counted(tokenizer, sizes, policy, max_length):
    example = chat(*(text for num_asked, num_said in sizes for text in ("ask " * num_asked, "say " * num_said)))
    header = tokenizer("<|im_start|>assistant\n", add_special_tokens=False)["input_ids"]
    sequencer = Sequencer(tokenizer, TokenizeConfig(max_length=max_length, overlong=policy, max_cut_fraction=1))

    sequences = [tokens for _, tokens in sequencer.sequences([example])]

    for tokens in sequences:
        assert len(tokens.input_ids) <= max_length
        assert tokens.input_ids[0] == tokenizer.convert_tokens_to_ids("<|im_start|>")
        for start, end in tokens.trained:
            assert tokens.input_ids[start - len(header) : start] == header
            assert end - start >= truncation.MIN_ANSWER_TOKENS, "a stop token alone is not an answer"
            assert tokens.input_ids[end - 1] == tokenizer.eos_token_id
    counts = sequencer.counts
    assert counts["overlong"] == counts["cut"] + counts["dropped"] <= counts["examples"] == 1
    assert len(sequences) == counts["examples"] - counts["dropped"] + counts["made_by_split"]


@pytest.mark.parametrize("max_length", [128, 256, 512])
@pytest.mark.parametrize("policy", POLICIES)
def test_truncated_real_rows_keep_their_stop_labels(policy, max_length, test_data, prepare_rows, tokenizer):
    rows = json.loads((test_data / "llamafactory" / "alpaca_en_demo.json").read_bytes())[:100]
    settings = {"max_length": max_length, "packing": False, "overlong": policy, "max_cut_fraction": 1}

    corpus = prepare_rows(rows, tokenize=settings)

    for split, counts in corpus.counts.items():
        ends = [[label for label in row["labels"] if label != schema.IGNORE_INDEX][-1] for row in corpus.splits[split]]
        assert set(ends) == {tokenizer.eos_token_id}
        assert counts["overlong"] == counts["cut"] + counts["dropped"] > 0
        assert len(ends) == counts["examples"] - counts["dropped"] + counts["made_by_split"]


def test_truncation_is_an_error_unless_the_recipe_enables_it(prepare_rows):
    long = {"instruction": "a", "input": "", "output": "word " * 300}

    with pytest.raises(DataError, match="more than tokenize.max_length 256"):
        prepare_rows([*ALPACA, long], merge={"validation_fraction": 0.2})


def test_a_long_chat_is_truncated_without_encoding_all_its_prefixes():
    messages, sizes = chat(*(f"turn {i}" for i in range(1000)))["messages"], []

    def encode(part):
        sizes.append(len(part))
        spans = [AnswerSpan(i, 3 * i, 3 * i + 3) for i, message in enumerate(part) if message["role"] == "assistant"]
        return [0] * 3 * len(part), spans

    for policy in ("right", "left", "proportional"):
        sizes.clear()
        ((remaining, ids, _),) = truncation.truncate(messages, encode, policy, 300)
        assert len(ids) == 300
        assert sum(sizes) < 12 * len(remaining), policy


# templates: a hand-written copy diverged from the model's own template


@pytest.mark.parametrize("name", ["auto", "qwen"])
def test_ids_are_those_of_the_models_own_chat_template(name, test_data, prepare_rows, tiny_model, tokenizer):
    rows = json.loads((test_data / "llamafactory" / "alpaca_en_demo.json").read_bytes())[:200]
    manifest, _ = selection.select_template(source.tokenizer_manifest(tiny_model), name)
    reference = load_tokenizer(manifest)
    chats = [
        [
            {"role": "user", "content": "\n".join(filter(None, [row["instruction"], row["input"]]))},
            {"role": "assistant", "content": row["output"]},
        ]
        for row in rows
    ]
    expected = {tuple(reference.apply_chat_template(turns, return_dict=True)["input_ids"]) for turns in chats}

    corpus = prepare_rows(rows, template=name, tokenize={"max_length": 8192, "packing": False})

    ids = [tuple(row["input_ids"]) for rows in corpus.splits.values() for row in rows]
    assert set(ids) == expected
    assert len(ids) == len(expected)


def test_a_system_message_is_rendered_as_in_the_recipe_and_never_invented(prepare_rows, tokenizer):
    bare, briefed = prepare_rows(), prepare_rows(align={"system": "Be brief"})

    assert not any("system" in text for text in texts(bare, tokenizer))
    assert all(text.startswith("<|im_start|>system\nBe brief<|im_end|>\n") for text in texts(briefed, tokenizer))


def texts(corpus, tokenizer):
    """Return the text of each example of the training rows."""
    return [tokenizer.decode(part["input_ids"]) for row in corpus.splits["train"] for part in split_examples(row)]


# openai rows: a system prompt was prepended to each row

CHATS = [
    {"messages": [{"role": "user", "content": f"Say {i}"}, {"role": "assistant", "content": f"{i}."}]}
    for i in range(40)
]


def test_rows_in_openais_format_get_no_system_prompt(prepare_rows, tokenizer):
    corpus = prepare_rows(CHATS, {"format": "openai"})

    assert all(text.startswith("<|im_start|>user\nSay ") for text in texts(corpus, tokenizer))
    assert not any("system" in text or "thinking" in text for text in texts(corpus, tokenizer))


def test_a_system_message_of_one_row_does_not_affect_other_rows(prepare_rows, tokenizer):
    with_system = {"messages": [{"role": "system", "content": "Be brief"}, *CHATS[0]["messages"]]}

    corpus = prepare_rows([*CHATS, with_system], {"format": "openai"})

    all_texts = [
        text for rows in corpus.splits.values() for row in rows for text in [tokenizer.decode(row["input_ids"])]
    ]
    assert "".join(all_texts).count("<|im_start|>system\nBe brief<|im_end|>") == 1
    assert "".join(all_texts).count("<|im_start|>system") == 1


# mixtures: a dataset listed twice counted once, and a limit beyond the number of rows repeated rows


def test_a_dataset_that_is_listed_three_times_counts_three_times(prepare_rows, tmp_path):
    entry = {"name": "d", "path": str(tmp_path / "data" / "d.jsonl")}

    once, thrice = prepare_rows(sources=[entry]), prepare_rows(sources=[entry] * 3)

    assert thrice.counts["train"]["sequences"] == 3 * once.counts["train"]["sequences"]
    assert thrice.counts["validation"] == once.counts["validation"]
    example_ids = [example for row in thrice.splits["train"] for example in row["example_ids"]]
    assert {example_ids.count(example) for example in example_ids} == {3}


@pytest.mark.parametrize("sample", ["first", "random"])
def test_max_rows_beyond_the_number_of_rows_repeats_none(sample, prepare_rows):
    all_rows, more = prepare_rows(), prepare_rows(source_keys={"max_rows": 500, "sample": sample})

    assert values(more) == values(all_rows)
    example_ids = [example for rows in more.splits.values() for row in rows for example in row["example_ids"]]
    assert len(example_ids) == len(set(example_ids)) == 60


# empty answers: only a stop token was trained

EMPTY = ["", " ", "\n\n\t", None]


@pytest.mark.parametrize("output", EMPTY)
def test_an_empty_answer_is_refused_with_its_line(output, prepare_rows):
    with pytest.raises(DataError, match=r"^d.jsonl:61: .* Fix the row, or set align.bad_rows: drop\.$"):
        prepare_rows([*ALPACA, {"instruction": "a", "input": "", "output": output}])


def test_empty_answers_are_dropped_and_counted_with_bad_rows_drop(tmp_path, prepare_rows):
    rows = [*ALPACA, *({"instruction": f"q{i}", "input": "", "output": output} for i, output in enumerate(EMPTY))]

    corpus = prepare_rows(rows, align={"bad_rows": "drop"})
    (counts,) = prepare_module.build_mixture(load.load(tmp_path / "run.yaml").recipe).counts["sources"]

    assert counts["dropped"] == {"empty assistant turn": 3, "'output' is null": 1}
    assert corpus.counts["train"]["examples"] + corpus.counts["validation"]["examples"] == len(ALPACA)
    trained = [sum(label != schema.IGNORE_INDEX for label in part["labels"]) for part in all_parts(corpus)]
    assert min(trained) > 1, "a stop token alone is not an answer"


def all_parts(corpus):
    return [part for rows in corpus.splits.values() for row in rows for part in split_examples(row)]
