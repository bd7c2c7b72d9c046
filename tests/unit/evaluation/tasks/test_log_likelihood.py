"""Log-likelihoods of texts and pairs, compared with plain forward passes."""

import pytest
import torch
from datasets import Dataset
from transformers import AutoTokenizer

from tuneline.data import schema
from tuneline.evaluation.tasks import log_likelihood
from tuneline.model import value_head
from tuneline.model.load import load_model


@pytest.fixture(scope="module")
def model(tiny_model):
    return load_model(tiny_model).eval()


@pytest.fixture(scope="module")
def tokenizer(tiny_model):
    return AutoTokenizer.from_pretrained(tiny_model)


def held_out(*contents):
    return Dataset.from_list([schema.example("s", content) for content in contents], features=schema.EXAMPLE)


def text(content):
    return schema.content(text=content)


def pair(chosen, rejected):
    return schema.content(
        [schema.message("user", "What is one and two?")],
        chosen=[schema.message("assistant", chosen)],
        rejected=[schema.message("assistant", rejected)],
    )


def labelled(answer, label):
    return schema.content([schema.message("user", "Say it"), schema.message("assistant", answer)], label=label)


def score_rows(model, tokenizer, rows, window=512, head=None):
    items = log_likelihood.items(rows, None)
    answer = log_likelihood.LikelihoodScorer(lambda: model, lambda: head, tokenizer, window).scorer(rows, title="test")
    return {score.item: score for score in answer(items)}


def naive_log_likelihood(model, ids, num_context):
    """Return the mean log-likelihood of the tokens after the context, one forward pass per token."""
    total = 0.0
    for i in range(num_context, len(ids)):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids[:i]])).logits[0, -1]
        total += float(logits.log_softmax(-1)[ids[i]])
    return total / (len(ids) - num_context)


def test_a_text_has_the_mean_log_likelihood_of_its_tokens_and_its_end(model, tokenizer):
    rows = held_out(text("The quick brown fox answers."))

    (score,) = score_rows(model, tokenizer, rows).values()

    ids = [*tokenizer("The quick brown fox answers.")["input_ids"], tokenizer.eos_token_id]
    assert score.metrics["log_likelihood"] == pytest.approx(naive_log_likelihood(model, ids, 1), rel=1e-5)


@pytest.mark.parametrize("window", [2, 5, 11])
def test_windows_score_each_token_once_except_the_first(model, tokenizer, window):
    """The last token of a window is the context of the next one."""
    ids = tokenizer("The quick brown fox answers: A B C D.")["input_ids"]

    spans = list(log_likelihood._windows(ids, window))

    assert [token for piece, num_context in spans for token in piece[num_context:]] == ids[1:]
    assert all(len(piece) <= window for piece, _ in spans)


def test_a_pair_is_right_if_the_chosen_answer_is_more_likely_per_token(model, tokenizer):
    one, other = "It is three.", "A B C D, or the quick brown fox."
    rows = held_out(pair(one, other), pair(other, one))

    scores = score_rows(model, tokenizer, rows)

    head = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is one and two?"}], add_generation_prompt=True, tokenize=False
    )
    prompt = tokenizer(head, add_special_tokens=False)["input_ids"]
    by_answer = {}
    for answer in (one, other):
        ids = [*tokenizer(answer, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        by_answer[answer] = naive_log_likelihood(model, prompt + ids, len(prompt))
    for row in rows:
        chosen, rejected = row["chosen"][0]["content"], row["rejected"][0]["content"]
        metrics = scores[row["id"]].metrics
        assert metrics["preference_accuracy"] == float(by_answer[chosen] > by_answer[rejected])
        assert metrics["log_likelihood"] == pytest.approx(by_answer[chosen], rel=1e-5)
    assert {score.metrics["preference_accuracy"] for score in scores.values()} == {0.0, 1.0}


def test_the_label_of_an_answer_sets_the_sign_of_its_score(model, tokenizer):
    good, bad = (score_rows(model, tokenizer, held_out(labelled("It is so.", label))) for label in (True, False))

    values = [score.metrics["signed_log_likelihood"] for scores in (good, bad) for score in scores.values()]
    assert values[0] == pytest.approx(-values[1])
    assert values[0] < 0


def test_chats_are_not_scored_by_likelihood():
    chat = schema.content([schema.message("user", "Say 1"), schema.message("assistant", "1")])

    assert not log_likelihood.uses_log_likelihood(held_out(chat))
    assert log_likelihood.uses_log_likelihood(held_out(text("So.")))


def test_a_reward_model_compares_pairs_by_reward(model, tokenizer):
    """A random head prefers one of two answers, whichever is more likely."""
    rows = held_out(pair("It is three.", "A B C D"), pair("A B C D", "It is three."))
    head = value_head.build_value_head(model, std=1.0)

    scores = score_rows(model, tokenizer, rows, head=head)

    assert sum(score.metrics["preference_accuracy"] for score in scores.values()) == 1
    head.summary.weight.data.neg_()
    negated = score_rows(model, tokenizer, rows, head=head)
    for item, score in scores.items():
        assert negated[item].metrics["preference_accuracy"] == 1 - score.metrics["preference_accuracy"]


def test_virtual_tokens_before_a_text_are_not_scored(tiny_model, tokenizer):
    from peft import PromptTuningConfig, get_peft_model

    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    prompted = get_peft_model(load_model(tiny_model), config).eval()
    ids = tokenizer("The brown fox answers.")["input_ids"]

    with torch.inference_mode():
        rows = prompted(input_ids=torch.tensor([ids])).logits[0, 3:-1].log_softmax(-1)
    expected = rows.gather(1, torch.tensor(ids[1:])[:, None]).mean()

    assert log_likelihood.mean_log_likelihood(prompted, [(ids, 1)]) == pytest.approx(float(expected), abs=1e-5)
