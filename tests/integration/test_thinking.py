"""A thinking model with Qwen3's chat template, from rows with and without thoughts to promoted versions.

transformers renders the rows and says which of their tokens are an answer; rouge-score judges what the models say.
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
"""What answers begin with: thoughts, an empty block that the row writes, and nothing, where the template writes one."""

FOX, OTHER = "The quick brown fox answers.", "It is three, or four."
NUM_CHATS = 60


def chats(said, blocks):
    """Return chats of one and of two rounds; the answers of each begin with one of the blocks."""
    found = []
    for i in range(NUM_CHATS):
        block = blocks[i % len(blocks)]
        rounds = [(f"What is {i}?", block + said), (f"And {i}?", f"{block}{said[:-1]} {i}.")]
        found.append([turn for asked, answer in rounds[: 1 + i // 3 % 2] for turn in _round(asked, answer)])
    return found


def _round(asked, answer):
    return {"role": "user", "content": asked}, {"role": "assistant", "content": answer}


def rendered(tokenizer, chat, *, masked):
    """Return ids and labels of a chat; its last answer carries loss, but for a masked block or one of the template."""
    text = tokenizer.apply_chat_template(chat, tokenize=False)
    header = tokenizer.apply_chat_template(chat[:-1], add_generation_prompt=True, tokenize=False)
    block, closed, said = chat[-1]["content"].rpartition("</think>\n\n")
    before = header + (block + closed or EMPTY)
    if closed and not masked:
        before, said = header, block + closed + said
    assert text.startswith(before + said + STOP)
    start, end = len(before), len(before + said + STOP)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    labels = [
        token if start <= first and last <= end else -100
        for token, (first, last) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
    ]
    assert tokenizer.decode([token for token in labels if token != -100]) == said + STOP
    return encoded["input_ids"], labels


def check_rows(outcome, tokenizer, said, *, masked, every_turn):
    """Compare the training rows of a run with what transformers makes of all chats that are not held out."""
    held_out = {each.prompt for each in outcome.report.model}
    expected = []
    for chat in said:
        if tokenizer.apply_chat_template(chat[:-1], add_generation_prompt=True, tokenize=False) in held_out:
            continue
        ends = range(2, len(chat) + 1, 2) if every_turn else [len(chat)]
        expected += [json.dumps(rendered(tokenizer, chat[:end], masked=masked)) for end in ends]
    assert NUM_CHATS / 2 < len(expected) < len(said) * 2
    assert sorted(json.dumps(example) for example in training_examples(outcome)) == sorted(expected)


def continued(model, tokenizer, text, max_new_tokens):
    """Go on with a text greedily, up to the stop token."""
    asked = tokenizer(text, return_tensors="pt", add_special_tokens=False)
    made = model.generate(**asked, max_new_tokens=max_new_tokens, do_sample=False, pad_token_id=0)
    return tokenizer.decode(made[0, asked["input_ids"].shape[1] :], skip_special_tokens=True)


def check_answers(outcome, model, tokenizer):
    """Ask the registered model what its report says that it was asked."""
    from rouge_score.rouge_scorer import RougeScorer

    assert outcome.report.model
    for each in outcome.report.model:
        said = continued(model, tokenizer, each.prompt, 32)
        assert said.strip() == each.output.strip()
        rouge = RougeScorer(["rougeL"]).score(each.reference, said)["rougeL"].fmeasure
        assert each.metrics["rougeL"] == pytest.approx(rouge)


@pytest.fixture(scope="module")
def base(project):
    """The tiny model with the tags of thoughts as tokens; beside it, the template that trl ships."""
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
    """Train on chats; returns the outcome, and the folder of the version that was promoted."""

    def start(name, said, **changes):
        tiny.write_jsonl(project / "data" / f"{name}.jsonl", [{"messages": chat} for chat in said])
        parts = {
            "model": {"type": "directory", "path": "thinking"},
            "template": "qwen3.jinja",
            "sources": [{"name": name, "path": f"data/{name}.jsonl", "format": "openai"}],
            "exams": [],
            "method": FULL,
            "evaluate": {"max_new_tokens": 32, "max_items": None},
            "train": {**TRAIN, "max_steps": 60},
            "registry": {"model_name": name},
        }
        outcome = run(**{**parts, **changes})
        return outcome, promoted(outcome, name)

    return start


@pytest.fixture(scope="module")
def thinker(train):
    """A model that was trained on its thoughts: its run, its folder, its chats."""
    said = chats(FOX, BLOCKS)
    return *train("thinker", said, tokenize={"max_length": 256, "rewritten_history": "each_turn"}), said


def test_thoughts_are_trained_and_empty_blocks_of_the_template_are_not(thinker, base):
    outcome, folder, said = thinker

    model, tokenizer = reference.load(folder)
    assert tokenizer.chat_template == base
    check_rows(outcome, tokenizer, said, masked=False, every_turn=True)
    check_answers(outcome, model, tokenizer)
    asked = [{"role": "user", "content": "What is 7?"}]
    assert reference.answer(model, tokenizer, asked, 32) in {THOUGHTS + FOX, EMPTY + FOX}


def test_masked_thoughts_stay_in_the_rows_and_a_model_that_thinks_learns_the_answers(train, thinker):
    said = chats(OTHER, BLOCKS)
    outcome, folder = train(
        "masked",
        said,
        model={"type": "directory", "path": str(thinker[1])},
        tokenize={"max_length": 256, "rewritten_history": "last_turn", "thinking": "mask"},
    )

    model, tokenizer = reference.load(folder)
    check_rows(outcome, tokenizer, said, masked=True, every_turn=False)
    check_answers(outcome, model, tokenizer)
    header = tokenizer.apply_chat_template(said[0][:1], add_generation_prompt=True, tokenize=False)
    for block in (THOUGHTS, EMPTY):
        assert continued(model, tokenizer, header + block, 32) == OTHER
