"""A thinking model with Qwen3's chat template, trained on rows with and without thoughts.

Rows and labels are compared with transformers, scores with rouge-score.
"""

import importlib.resources
import json

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests import tiny
from tests.integration import reference
from tests.integration.test_inputs import FULL, TRAIN, promoted, training_examples

pytestmark = [pytest.mark.zenml, pytest.mark.slow]

THOUGHTS, STOP = "<think>\nThe quick fox.\n</think>\n\n", "<|im_end|>"
EMPTY = "<think>\n\n</think>\n\n"
BLOCKS = [THOUGHTS, EMPTY, ""]
"""Starts of answers: thoughts, an empty block in the row, and nothing, so that the template adds an empty block."""

FOX, OTHER = "The quick brown fox answers.", "It is three, or four."
NUM_CHATS = 60


def build_chats(answer, blocks):
    """Return chats of one or two rounds whose answers start with one of the blocks."""
    chats = []
    for i in range(NUM_CHATS):
        block = blocks[i % len(blocks)]
        rounds = [(f"What is {i}?", block + answer), (f"And {i}?", f"{block}{answer[:-1]} {i}.")]
        chats.append([turn for question, reply in rounds[: 1 + i // 3 % 2] for turn in _round(question, reply)])
    return chats


def _round(question, answer):
    return {"role": "user", "content": question}, {"role": "assistant", "content": answer}


def expected_example(tokenizer, chat, *, masked):
    """Return ids and labels of a chat; the last answer has labels, except a masked or added thinking block."""
    text = tokenizer.apply_chat_template(chat, tokenize=False)
    header = tokenizer.apply_chat_template(chat[:-1], add_generation_prompt=True, tokenize=False)
    block, closed, answer = chat[-1]["content"].rpartition("</think>\n\n")
    prefix = header + (block + closed or EMPTY)
    if closed and not masked:
        prefix, answer = header, block + closed + answer
    assert text.startswith(prefix + answer + STOP)
    start, end = len(prefix), len(prefix + answer + STOP)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    labels = [
        token if start <= first and last <= end else -100
        for token, (first, last) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
    ]
    assert tokenizer.decode([token for token in labels if token != -100]) == answer + STOP
    return encoded["input_ids"], labels


def check_rows(outcome, tokenizer, chats, *, masked, every_turn):
    """Compare the training rows of a run with the chats that are not held out, rendered by transformers."""
    held_out = {score.prompt for score in outcome.report.model}
    expected = []
    for chat in chats:
        if tokenizer.apply_chat_template(chat[:-1], add_generation_prompt=True, tokenize=False) in held_out:
            continue
        ends = range(2, len(chat) + 1, 2) if every_turn else [len(chat)]
        expected += [json.dumps(expected_example(tokenizer, chat[:end], masked=masked)) for end in ends]
    assert NUM_CHATS / 2 < len(expected) < len(chats) * 2
    assert sorted(json.dumps(example) for example in training_examples(outcome)) == sorted(expected)


def complete(model, tokenizer, text, max_new_tokens):
    """Complete a text greedily, up to the stop token."""
    inputs = tokenizer(text, return_tensors="pt", add_special_tokens=False)
    output_ids = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False, pad_token_id=0)
    return tokenizer.decode(output_ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def check_answers(outcome, model, tokenizer):
    """Generate the answers of the report again with the registered model and compare outputs and scores."""
    from rouge_score.rouge_scorer import RougeScorer

    assert outcome.report.model
    for score in outcome.report.model:
        answer = complete(model, tokenizer, score.prompt, 32)
        assert answer.strip() == score.output.strip()
        rouge = RougeScorer(["rougeL"]).score(score.reference, answer)["rougeL"].fmeasure
        assert score.metrics["rougeL"] == pytest.approx(rouge)


@pytest.fixture(scope="module")
def base(project):
    """Write the tiny model with thinking tags as tokens, and trl's Qwen3 template; return the template."""
    tokenizer = AutoTokenizer.from_pretrained(project / "model")
    model = AutoModelForCausalLM.from_pretrained(project / "model")
    tokenizer.add_tokens(["<think>", "</think>"])
    model.resize_token_embeddings(len(tokenizer))
    for part in (model, tokenizer):
        part.save_pretrained(project / "thinking")
    template = (importlib.resources.files("trl") / "chat_templates" / "qwen3.jinja").read_text()
    (project / "qwen3.jinja").write_text(template)
    return template


@pytest.fixture(scope="module")
def train(project, base, run):
    """Return a function that trains on chats and returns the outcome and the folder of the promoted version."""

    def run_training(name, chats, **changes):
        tiny.write_jsonl(project / "data" / f"{name}.jsonl", [{"messages": chat} for chat in chats])
        recipe = {
            "model": {"type": "directory", "path": "thinking"},
            "template": "qwen3.jinja",
            "sources": [{"name": name, "path": f"data/{name}.jsonl", "format": "openai"}],
            "exams": [],
            "method": FULL,
            "evaluate": {"max_new_tokens": 32, "max_items": None},
            "train": {**TRAIN, "max_steps": 60},
            "registry": {"model_name": name},
        }
        outcome = run(**{**recipe, **changes})
        return outcome, promoted(outcome, name)

    return run_training


@pytest.fixture(scope="module")
def thinker(train):
    """A model trained on its thoughts: outcome, folder and chats."""
    chats = build_chats(FOX, BLOCKS)
    return *train("thinker", chats, tokenize={"max_length": 256, "rewritten_history": "each_turn"}), chats


def test_thoughts_have_labels_and_empty_blocks_of_the_template_do_not(thinker, base):
    outcome, folder, chats = thinker

    model, tokenizer = reference.load(folder)
    assert tokenizer.chat_template == base
    check_rows(outcome, tokenizer, chats, masked=False, every_turn=True)
    check_answers(outcome, model, tokenizer)
    messages = [{"role": "user", "content": "What is 7?"}]
    assert reference.generate(model, tokenizer, messages, 32) in {THOUGHTS + FOX, EMPTY + FOX}


def test_masked_thoughts_stay_in_the_rows_without_labels(train, thinker):
    chats = build_chats(OTHER, BLOCKS)
    outcome, folder = train(
        "masked",
        chats,
        model={"type": "directory", "path": str(thinker[1])},
        tokenize={"max_length": 256, "rewritten_history": "last_turn", "thinking": "mask"},
    )

    model, tokenizer = reference.load(folder)
    check_rows(outcome, tokenizer, chats, masked=True, every_turn=False)
    check_answers(outcome, model, tokenizer)
    header = tokenizer.apply_chat_template(chats[0][:1], add_generation_prompt=True, tokenize=False)
    for block in (THOUGHTS, EMPTY):
        assert complete(model, tokenizer, header + block, 32) == OTHER
