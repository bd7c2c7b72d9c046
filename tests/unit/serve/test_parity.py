"""The proof of the prompt format: prompts of the front have the ids of stored rows, and any difference is found."""

import pytest
from datasets import Dataset

from benchmarks import chat_templates
from tuneline.config.sections.data import TokenizeStepConfig
from tuneline.data import schema
from tuneline.data.chat_template import selection
from tuneline.data.corpus import Corpus
from tuneline.data.tokenization import tokenize
from tuneline.data.tokenizer.loader import load_tokenizer
from tuneline.errors import VerificationError
from tuneline.model import source
from tuneline.serve import parity
from tuneline.tracking.registry import Version

TEMPLATES = chat_templates.templates()
LAST_TURN = (
    "{% for m in messages %}{% if m.role == 'assistant' and not loop.last %}<|im_start|>{{ m.role }}\n…<|im_end|>\n"
    "{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
DATED = "{% if strftime_now is defined %}{{ strftime_now('%d %b %Y') }}{% endif %}"


@pytest.fixture(scope="module")
def manifest(tiny_model):
    return source.tokenizer_manifest(tiny_model)


@pytest.fixture(scope="module")
def tokenizer(manifest):
    return load_tokenizer(manifest)


def chat(*contents, trains=()):
    switches = [*trains, *[None] * len(contents)]
    turns = zip(["user", "assistant"] * len(contents), contents, [None] * len(contents), switches, strict=False)
    return schema.example("s", schema.content([schema.message(*turn) for turn in turns]))


CHATS = [
    chat("What is one?", "It is one."),
    chat("What is two?", "\n\nIt is two.", "And three?", "It is three."),
    chat("Grüß Gott 你好", "Hello 😀", "And?", "Or.", "Four", "D", trains=(None, False)),
]


def stored(examples, manifest, **config):
    rows = Dataset.from_list(list(examples), features=schema.EXAMPLE)
    mixture = Corpus({"train": rows, "validation": rows.select([])})
    packed = tokenize.tokenize_pack(mixture, manifest, TokenizeStepConfig(**{"max_length": 256} | config))
    return parity.select_rows(mixture, packed, "the rows")


@pytest.mark.parametrize("packing", [True, False])
def test_every_prompt_before_a_trained_answer_is_compared(packing, manifest, tokenizer):
    report = parity.verify_template(tokenizer, stored(CHATS, manifest, packing=packing))

    assert (report.num_examples, report.num_prompts, report.num_truncated) == (3, 5, 0)
    assert report.sentence.startswith("Prompt format verified: 5 prompts of 3 examples")


@pytest.mark.parametrize(("history", "num_prompts"), [("each_turn", 5), ("last_turn", 3)])
def test_templates_that_rewrite_history_are_compared_answer_by_answer(history, num_prompts, manifest):
    rewriting = selection.select_template(manifest, _template_file(manifest, LAST_TURN))[0]

    rows = stored(CHATS, rewriting, rewritten_history=history)

    assert parity.verify_template(load_tokenizer(rewriting), rows).num_prompts == num_prompts


def _template_file(manifest, text):
    from tuneline.data.corpus import create_scratch_file

    path = create_scratch_file().with_suffix(".jinja")
    path.write_text(text)
    return str(path)


def test_tools_and_pairs_and_labelled_answers_are_compared(manifest):
    qwen = selection.select_template(manifest, "qwen")[0]
    tokenizer = load_tokenizer(qwen)
    question, good = [schema.message("user", "q")], [schema.message("assistant", "good")]
    pair = schema.content(question, chosen=good, rejected=[schema.message("assistant", "bad")])
    rows = {
        "sft": [schema.example("s", chat_templates.chats()["tools"])],
        "preference": [schema.example("s", pair)],
        "kto": [schema.example("s", schema.content([*question, *good], label=True))],
        "prompt": [schema.example("s", schema.content([*question, *good]))],
    }

    reports = {
        stage: parity.verify_template(tokenizer, stored(examples, qwen, stage=stage, max_length=1024))
        for stage, examples in rows.items()
    }

    assert {stage: report.num_prompts for stage, report in reports.items()} == {
        "sft": 2,
        "preference": 1,
        "kto": 1,
        "prompt": 1,
    }


@pytest.mark.parametrize("packing", [True, "wrapped"])
def test_texts_are_compared_with_the_encoding_of_completions(packing, manifest, tokenizer):
    texts = [schema.example("s", schema.content(text=f"The fox answers {i}. " * 8)) for i in range(3)]

    report = parity.verify_template(tokenizer, stored(texts, manifest, stage="pretrain", packing=packing))

    assert report.num_examples == (1 if packing == "wrapped" else 3)
    assert report.num_tokens > 0


def test_truncated_examples_are_left_out(manifest, tokenizer):
    long = chat("What? " * 90, "It. " * 10)
    rows = stored([*CHATS, long], manifest, max_length=160, overlong="left", max_cut_fraction=1)

    report = parity.verify_template(tokenizer, rows)

    assert (report.num_examples, report.num_truncated) == (3, 1)


@pytest.mark.parametrize(
    ("old", "new"), [("<|im_start|>assistant\n", "<|im_start|>assistant:\n"), ("m['content']", "m['content'] | trim")]
)
def test_another_template_is_found_with_row_and_position(old, new, manifest):
    rows = stored([*CHATS, chat(" padded ", "answer")], manifest)
    other = load_tokenizer(manifest)
    other.chat_template = other.chat_template.replace(old, new)

    with pytest.raises(VerificationError, match=r"row \d of the rows .*differs at token \d+: the server would send"):
        parity.verify_template(other, rows)


def test_another_tokenizer_is_found(manifest):
    rows = stored(CHATS, manifest)
    other = load_tokenizer(manifest)
    other.add_tokens(["one"])

    with pytest.raises(VerificationError, match="differs at token"):
        parity.verify_template(other, rows)


def test_a_model_without_rows_is_compared_with_the_rendering_of_transformers(tokenizer):
    report = parity.verify_template(tokenizer)

    assert report.num_prompts == 3
    assert "There are no training rows" in report.note


def test_a_version_without_run_says_why_its_rows_are_not_compared(tokenizer):
    version = Version("demo", "7", (), "", "file:///nowhere", "", {})

    rows = parity.stored_rows(version)

    assert "demo version 7 was not registered by a run" in rows.source
    assert "demo version 7" in parity.verify_template(tokenizer, rows).note


def test_rows_of_another_day_are_not_compared_with_a_template_that_writes_the_date(manifest):
    rows = stored(CHATS, manifest)
    dated = load_tokenizer(manifest)
    dated.chat_template = DATED + dated.chat_template

    report = parity.verify_template(dated, rows)

    assert "writes the current date" in report.note
    assert report.num_prompts == 3


def test_a_template_that_refuses_every_conversation_is_an_error(manifest):
    refusing = load_tokenizer(manifest)
    refusing.chat_template = "{{ raise_exception('no') }}"

    with pytest.raises(VerificationError, match="refuses a conversation with one question"):
        parity.verify_template(refusing)


def test_a_base_model_without_template_is_not_compared(manifest):
    plain = load_tokenizer(manifest)
    plain.chat_template = None

    assert parity.verify_template(plain).num_prompts == 0
