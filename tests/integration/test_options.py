"""Options of loading, packing, training and merging: the promoted model has the same scores in transformers."""

import json

import pytest
from transformers import AutoConfig, AutoTokenizer

from tests import tiny
from tests.integration import reference
from tests.integration.test_inputs import TEXTS, promoted, training_examples

pytestmark = [pytest.mark.zenml, pytest.mark.slow]

STEPS = {"learning_rate": 1e-2, "max_steps": 30, "lr_scheduler_type": "constant"}
FLOAT32 = {"dtype": "float32"}
OPTIONS = {
    "bfloat16": {"load": {"dtype": "bfloat16"}},
    "eager attention": {"load": {**FLOAT32, "attention": "eager"}},
    "attention by segments": {"load": {**FLOAT32, "attention": "segment"}},
    "shifted attention": {"load": {**FLOAT32, "s2_group_size_ratio": 0.25}},
    "linear positions": {"load": {**FLOAT32, "rope_scaling": {"rope_type": "linear", "factor": 2.0}}},
    "yarn positions": {"load": {**FLOAT32, "rope_scaling": {"rope_type": "yarn", "factor": 2.0}}},
    "recomputed activations": {"load": {**FLOAT32, "gradient_checkpointing": "full"}},
    "selective recomputation": {"load": {**FLOAT32, "gradient_checkpointing": "selective"}},
    "random weights": {"load": {**FLOAT32, "train_from_scratch": True}, "method": {"type": "full"}},
    "no packing": {"tokenize": {"max_length": 256, "packing": False}},
    "one stream": {"tokenize": {"max_length": 64, "packing": "wrapped"}},
    "noise": {"train": {**STEPS, "neftune_noise_alpha": 5.0}},
    "accumulation": {"train": {**STEPS, "gradient_accumulation_steps": 2, "max_steps": 20}},
    "shards of bfloat16": {"merge_adapter": {"dtype": "bfloat16", "max_shard_size": "50KB", "max_kl": 0.1}},
    **{
        f"optimizer {name}": {"train": {**STEPS, "optim": name}, "method": {"type": "full"}}
        for name in ("adafactor", "lion_32bit", "ademamix", "muon", "schedule_free_adamw", "adam_mini", "badam")
    },
}


@pytest.fixture(scope="module", autouse=True)
def texts(project):
    """Write texts to train on."""
    return tiny.write_texts(project / "data" / "texts.jsonl", 60)


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_gives_a_model_with_the_same_scores_in_transformers(name, run):
    model_name = name.replace(" ", "-")
    changes = {"train": STEPS, **OPTIONS[name]}
    outcome = run(
        "pretrain_pipeline",
        **TEXTS,
        registry={"model_name": model_name},
        **changes,
    )

    folder = promoted(outcome, model_name)
    model, tokenizer = reference.load(folder)
    for score in outcome.report.model:
        value = reference.text_log_likelihood(model, tokenizer, score.prompt)
        assert score.metrics["log_likelihood"] == pytest.approx(value, abs=5e-4)
    scaling = OPTIONS[name].get("load", {}).get("rope_scaling")
    if scaling:
        assert AutoConfig.from_pretrained(folder).rope_parameters["rope_type"] == scaling["rope_type"]


TEMPLATES = ("alpaca", "chatml", "default", "vicuna", "zephyr")


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_named_template_is_registered_with_the_model(name, project, run):
    rows = [{"instruction": f"What is {i}?", "input": "", "output": "The quick brown fox answers."} for i in range(60)]
    tiny.write_jsonl(project / "data" / "rows.jsonl", rows)
    outcome = run(
        sources=[{"name": "rows", "path": "data/rows.jsonl", "format": "alpaca"}],
        exams=[],
        template=name,
        method={"type": "full"},
        evaluate={"max_new_tokens": 16},
        train={**STEPS, "max_steps": 60},
        registry={"model_name": f"template-{name}"},
    )

    folder = promoted(outcome, f"template-{name}")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    chats = [
        [{"role": "user", "content": row["instruction"]}, {"role": "assistant", "content": row["output"]}]
        for row in rows
    ]
    allowed = {json.dumps(tokenizer.apply_chat_template(chat, return_dict=True)["input_ids"]) for chat in chats}
    assert {json.dumps(ids) for ids, _ in training_examples(outcome)} <= allowed
    model, _ = reference.load(folder)
    assert reference.generate(model, tokenizer, chats[0][:1], 16).strip() == rows[0]["output"]


def test_a_weighted_mixture_has_the_configured_shares(project, run):
    for name, count in (("many", 60), ("few", 20)):
        tiny.write_jsonl(
            project / "data" / f"{name}.jsonl",
            [
                {"instruction": f"What is {i} of {name}?", "input": "", "output": "The fox answers."}
                for i in range(count)
            ],
        )
    sources = [
        {"name": name, "path": f"data/{name}.jsonl", "format": "alpaca", "weight": weight}
        for name, weight in (("many", 1.0), ("few", 3.0))
    ]
    outcome = run(
        sources=sources,
        exams=[],
        merge={"validation_fraction": 0.3, "strategy": "interleave_over"},
        method={"type": "full"},
        evaluate={"max_new_tokens": 12},
        train={**STEPS, "max_steps": 60},
        registry={"model_name": "mixture"},
    )

    tokenizer = AutoTokenizer.from_pretrained(promoted(outcome, "mixture"))
    texts = [tokenizer.decode(ids) for ids, _ in training_examples(outcome)]
    share = sum("of few" in text for text in texts) / len(texts)
    assert share == pytest.approx(0.75, abs=0.1)
