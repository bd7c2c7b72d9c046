"""Every method and stage, from a recipe to a promoted version that has the same scores in other libraries."""

import functools

import pytest

from tests import tiny
from tests.integration import reference
from tuneline.zenml_integration import tracker

pytestmark = [pytest.mark.zenml, pytest.mark.slow]

STEPS = {"learning_rate": 1e-2, "max_steps": 30, "lr_scheduler_type": "constant"}
METHODS = {
    "full": {"type": "full"},
    "freeze": {"type": "freeze", "layers": 1},
    "lora": {"type": "lora", "r": 4, "lora_alpha": 8},
    "lora_saved_modules": {"type": "lora", "r": 4, "lora_alpha": 8, "modules_to_save": ["norm"]},
    "rslora": {"type": "lora", "r": 4, "lora_alpha": 8, "use_rslora": True},
    "dora": {"type": "lora", "r": 4, "lora_alpha": 8, "use_dora": True},
    "pissa": {"type": "lora", "r": 4, "lora_alpha": 8, "init_lora_weights": "pissa"},
    "olora": {"type": "lora", "r": 4, "lora_alpha": 8, "init_lora_weights": "olora"},
    "loraplus": {"type": "lora", "r": 4, "lora_alpha": 8, "loraplus_lr_ratio": 4.0},
    "adalora": {"type": "adalora", "init_r": 4, "target_r": 2},
    "vera": {"type": "vera", "r": 16},
    "oft": {"type": "oft", "oft_block_size": 8},
    "ia3": {"type": "ia3"},
    "prefix": {"type": "prefix", "num_virtual_tokens": 4},
    "prompt": {"type": "prompt", "num_virtual_tokens": 4},
    "p_tuning": {"type": "p_tuning", "num_virtual_tokens": 4, "encoder_hidden_size": 16},
    "bottleneck": {"type": "bottleneck", "bottleneck_size": 8},
}
VIRTUAL = ("prefix", "prompt", "p_tuning")
"""Methods that prepend virtual tokens to a row, so that a row holds one example."""

UNPACKED = {
    "tokenize": {"max_length": 256, "packing": False},
    "train": {**STEPS, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 8},
}
PAIRS = [{"name": "pairs", "path": "data/pairs.jsonl", "format": "preference"}]
LABELLED = [{"name": "labelled", "path": "data/labelled.jsonl", "format": "kto"}]
TEXTS = [{"name": "texts", "path": "data/texts.jsonl", "format": "text"}]
CHATS = [{"name": "chats", "path": "data/chats.jsonl", "format": "openai"}]


@pytest.fixture(scope="module", autouse=True)
def data(project):
    """Write rows for each stage; return the base model and its tokenizer."""
    tiny.write_preferences(project / "data")
    tiny.write_texts(project / "data" / "texts.jsonl", 60)
    fox = "The quick brown fox answers."
    chats = [
        {"messages": [{"role": "user", "content": f"What is {i}?"}, {"role": "assistant", "content": fox}]}
        for i in range(60)
    ]
    tiny.write_jsonl(project / "data" / "chats.jsonl", chats)
    return reference.load(project / "model")


def promoted(outcome, name):
    """Return the folder of the version that a run promoted to champion."""
    assert "champion" in outcome.decision.aliases, outcome.decision.sentence
    tracker.connect()
    return reference.champion_folder(name)


def scores(outcome, side, metric):
    """Return each item of a report that has the metric, with its value."""
    return [(score, score.metrics[metric]) for score in getattr(outcome.report, side) if metric in score.metrics]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_promoted_and_reloads_with_the_scores_of_its_report(method, run, data):
    name = f"method-{method}"
    outcome = run(
        "pretrain_pipeline",
        stage="pretrain",
        sources=TEXTS,
        evaluate={"max_items": None},
        method=METHODS[method],
        **(UNPACKED if method in VIRTUAL else {"train": STEPS}),
        registry={"model_name": name, "gate": {"metric": "log_likelihood"}},
    )
    model, tokenizer = reference.load(promoted(outcome, name))

    for side, (scorer, scorer_tokenizer) in {"model": (model, tokenizer), "base": data}.items():
        for score, value in scores(outcome, side, "log_likelihood"):
            expected = reference.text_log_likelihood(scorer, scorer_tokenizer, score.prompt)
            assert value == pytest.approx(expected, abs=2e-4)
        check_letters(outcome, side, scorer, scorer_tokenizer)
    gains = [after - before for (_, after), (_, before) in zip(*pairs_of(outcome, "log_likelihood"), strict=True)]
    assert sum(gains) / len(gains) == pytest.approx(outcome.report.metrics()["log_likelihood"]["gain"].mean, abs=1e-6)


def check_letters(outcome, side, model, tokenizer):
    """Compare the letters in a report with those that the reference predicts."""
    questions = [score for score in getattr(outcome.report, side) if score.benchmark == "exam"]
    assert questions
    assert [score.output for score in questions] == [
        reference.predict_letter(model, tokenizer, score.prompt) for score in questions
    ]


def pairs_of(outcome, metric):
    """Return the scores of the model and of the base model, in the same order."""
    return scores(outcome, "model", metric), scores(outcome, "base", metric)


def test_a_chat_model_generates_the_answers_of_its_report_in_transformers(run, data):
    from rouge_score.rouge_scorer import RougeScorer

    outcome = run(
        sources=CHATS,
        evaluate={"max_new_tokens": 12},
        method=METHODS["full"],
        train={**STEPS, "max_steps": 60},
        registry={"model_name": "chats"},
    )
    model, tokenizer = reference.load(promoted(outcome, "chats"))

    answers = [score for score, _ in scores(outcome, "model", "rougeL")]
    assert answers
    for score in answers:
        question = score.prompt.split("user\n")[-1].split("<|im_end|>")[0]
        answer = reference.generate(model, tokenizer, [{"role": "user", "content": question}], 12)
        assert answer.strip() == score.output.strip()
        rouge = RougeScorer(["rougeL"]).score(score.reference, answer)["rougeL"].fmeasure
        assert score.metrics["rougeL"] == pytest.approx(rouge)
    check_letters(outcome, "model", model, tokenizer)


PREFERENCES = {
    "dpo": "preference_accuracy",
    "orpo": "preference_accuracy",
    "cpo": "preference_accuracy",
    "simpo": "preference_accuracy",
    "kto": "signed_log_likelihood",
    "rm": "preference_accuracy",
}


GATES = {"kto": {"test": "bootstrap"}}
"""Gates with other defaults: nine labelled answers are too few for the bounded-mean test."""


def rows_of(project, stage):
    """Return the rows of a stage by prompt."""
    import json

    name = "labelled" if stage == "kto" else "pairs"
    rows = [json.loads(line) for line in (project / "data" / f"{name}.jsonl").read_text().splitlines()]
    return {row["prompt"]: row for row in rows}


@pytest.mark.parametrize("stage", PREFERENCES)
def test_every_preference_stage_is_promoted_with_the_scores_of_transformers(stage, run, project, data):
    name, metric = f"stage-{stage}", PREFERENCES[stage]
    outcome = run(
        f"{stage}_pipeline",
        stage=stage,
        sources=LABELLED if stage == "kto" else PAIRS,
        exams=[],
        evaluate={"max_items": None},
        train={**STEPS, "max_steps": 60},
        registry={"model_name": name, "gate": GATES.get(stage, {})},
    )
    folder = promoted(outcome, name)
    model, tokenizer = reference.load(folder)
    rows = rows_of(project, stage)
    likelihood = functools.partial(reference.answer_log_likelihood, model, tokenizer)
    if stage == "rm":
        likelihood = functools.partial(reference.reward, folder, model, tokenizer)

    for score, value in scores(outcome, "model", metric):
        row = rows[score.prompt.removeprefix("user: ").split("\n")[0]]
        messages = [{"role": "user", "content": row["prompt"]}]
        if stage == "kto":
            sign = 1 if row["label"] else -1
            assert value == pytest.approx(sign * likelihood(messages, row["completion"]), abs=2e-4)
        else:
            assert value == float(likelihood(messages, row["chosen"]) > likelihood(messages, row["rejected"]))


@pytest.mark.parametrize("stage", ["ppo", "grpo"])
def test_rl_answers_and_rewards_equal_those_of_transformers(stage, run, data):
    from tests.rewards import vowels

    name = f"stage-{stage}"
    train = {"learning_rate": 3e-3, "max_steps": 30, "max_completion_length": 8, "per_device_train_batch_size": 8}
    outcome = run(
        f"{stage}_pipeline",
        stage=stage,
        sources=CHATS,
        exams=[],
        method=METHODS["full"] if stage == "grpo" else METHODS["lora"],
        evaluate={"max_new_tokens": 8},
        train={**train, "reward_function": "tests.rewards:vowels"},
        registry={"model_name": name, "gate": {"metric": "reward"}},
    )
    model, tokenizer = reference.load(promoted(outcome, name))

    for score, value in scores(outcome, "model", "reward"):
        question = score.prompt.split("user\n")[-1].split("<|im_end|>")[0]
        answer = reference.generate(model, tokenizer, [{"role": "user", "content": question}], 8)
        assert answer.strip() == score.output.strip()
        assert value == pytest.approx(vowels([], [score.output], [])[0])
