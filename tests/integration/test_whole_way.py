"""Every method and every stage, from a recipe to a promoted version that other libraries load with the same scores."""

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
"""Methods with tokens in front of a row, which then holds one example."""

ONE_A_ROW = {
    "tokenize": {"max_length": 256, "packing": False},
    "train": {**STEPS, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 8},
}
PAIRS = [{"name": "pairs", "path": "data/pairs.jsonl", "format": "preference"}]
LABELLED = [{"name": "labelled", "path": "data/labelled.jsonl", "format": "kto"}]
TEXTS = [{"name": "texts", "path": "data/texts.jsonl", "format": "text"}]
CHATS = [{"name": "chats", "path": "data/chats.jsonl", "format": "openai"}]


@pytest.fixture(scope="module", autouse=True)
def data(project):
    """Rows of each stage, and the base model as the reference loads it."""
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
    """Return the folder of the version that a run promoted."""
    assert "champion" in outcome.decision.aliases, outcome.decision.sentence
    tracker.connect()
    return reference.champion_folder(name)


def scores(outcome, who, metric):
    """Return what a report says, item by item, after the text that was asked."""
    return [(each, each.metrics[metric]) for each in getattr(outcome.report, who) if metric in each.metrics]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_promoted_and_loads_elsewhere_with_the_scores_of_its_report(method, run, data):
    name = f"method-{method}"
    outcome = run(
        "pretrain_pipeline",
        stage="pretrain",
        sources=TEXTS,
        evaluate={"max_items": None},
        method=METHODS[method],
        **(ONE_A_ROW if method in VIRTUAL else {"train": STEPS}),
        registry={"model_name": name, "gate": {"metric": "log_likelihood"}},
    )
    model, tokenizer = reference.load(promoted(outcome, name))

    for who, (judge, words) in {"model": (model, tokenizer), "base": data}.items():
        for each, value in scores(outcome, who, "log_likelihood"):
            assert value == pytest.approx(reference.text_log_likelihood(judge, words, each.prompt), abs=2e-4)
        check_letters(outcome, who, judge, words)
    gains = [after - before for (_, after), (_, before) in zip(*pairs_of(outcome, "log_likelihood"), strict=True)]
    assert sum(gains) / len(gains) == pytest.approx(outcome.report.metrics()["log_likelihood"]["gain"].mean, abs=1e-6)


def check_letters(outcome, who, model, tokenizer):
    """Compare the letters that a report holds with those that the reference finds likeliest."""
    questions = [each for each in getattr(outcome.report, who) if each.benchmark == "exam"]
    assert questions
    assert [each.output for each in questions] == [reference.letter(model, tokenizer, q.prompt) for q in questions]


def pairs_of(outcome, metric):
    """Return the scores of both models, in the same order."""
    return scores(outcome, "model", metric), scores(outcome, "base", metric)


def test_a_chat_model_answers_elsewhere_what_its_report_says(run, data):
    from rouge_score.rouge_scorer import RougeScorer

    outcome = run(
        sources=CHATS,
        evaluate={"max_new_tokens": 12},
        method=METHODS["full"],
        train={**STEPS, "max_steps": 60},
        registry={"model_name": "chats"},
    )
    model, tokenizer = reference.load(promoted(outcome, "chats"))

    answers = [each for each, _ in scores(outcome, "model", "rougeL")]
    assert answers
    for each in answers:
        asked = each.prompt.split("user\n")[-1].split("<|im_end|>")[0]
        said = reference.answer(model, tokenizer, [{"role": "user", "content": asked}], 12)
        assert said.strip() == each.output.strip()
        rouge = RougeScorer(["rougeL"]).score(each.reference, said)["rougeL"].fmeasure
        assert each.metrics["rougeL"] == pytest.approx(rouge)
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
"""A gate asks for the metric of its stage; nine labelled answers are too few for the test of a bounded mean."""


def rows_of(project, stage):
    """Return the rows of a stage by their answer that is wanted."""
    import json

    name = "labelled" if stage == "kto" else "pairs"
    rows = [json.loads(line) for line in (project / "data" / f"{name}.jsonl").read_text().splitlines()]
    return {row["prompt"]: row for row in rows}


@pytest.mark.parametrize("stage", PREFERENCES)
def test_every_preference_stage_is_promoted_and_judged_elsewhere_alike(stage, run, project, data):
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

    for each, value in scores(outcome, "model", metric):
        row = rows[each.prompt.removeprefix("user: ").split("\n")[0]]
        asked = [{"role": "user", "content": row["prompt"]}]
        if stage == "kto":
            sign = 1 if row["label"] else -1
            assert value == pytest.approx(sign * likelihood(asked, row["completion"]), abs=2e-4)
        else:
            assert value == float(likelihood(asked, row["chosen"]) > likelihood(asked, row["rejected"]))


@pytest.mark.parametrize("stage", ["ppo", "grpo"])
def test_answers_rewarded_by_a_function_are_rewarded_elsewhere_alike(stage, run, data):
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

    for each, value in scores(outcome, "model", "reward"):
        asked = each.prompt.split("user\n")[-1].split("<|im_end|>")[0]
        said = reference.answer(model, tokenizer, [{"role": "user", "content": asked}], 8)
        assert said.strip() == each.output.strip()
        assert value == pytest.approx(vowels([], [each.output], [])[0])
