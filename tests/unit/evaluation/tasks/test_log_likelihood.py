"""Texts and pairs are judged by what a plain forward pass says of them."""

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


def held_out(*said):
    return Dataset.from_list([schema.example("s", each) for each in said], features=schema.EXAMPLE)


def text(words):
    return schema.content(text=words)


def pair(chosen, rejected):
    return schema.content(
        [schema.message("user", "What is one and two?")],
        chosen=[schema.message("assistant", chosen)],
        rejected=[schema.message("assistant", rejected)],
    )


def labelled(answer, label):
    return schema.content([schema.message("user", "Say it"), schema.message("assistant", answer)], label=label)


def scored(model, tokenizer, rows, window=512, head=None):
    items = log_likelihood.items(rows, None)
    answer = log_likelihood.LikelihoodScorer(lambda: model, lambda: head, tokenizer, window).scorer(rows, title="test")
    return {score.item: score for score in answer(items)}


def naive(model, ids, given):
    """Token by token, each from its own forward pass."""
    total = 0.0
    for i in range(given, len(ids)):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids[:i]])).logits[0, -1]
        total += float(logits.log_softmax(-1)[ids[i]])
    return total / (len(ids) - given)


def test_a_text_has_the_mean_log_likelihood_of_its_tokens_and_its_end(model, tokenizer):
    rows = held_out(text("The quick brown fox answers."))

    (score,) = scored(model, tokenizer, rows).values()

    ids = [*tokenizer("The quick brown fox answers.")["input_ids"], tokenizer.eos_token_id]
    assert score.metrics["log_likelihood"] == pytest.approx(naive(model, ids, 1), rel=1e-5)


@pytest.mark.parametrize("window", [2, 5, 11])
def test_windows_score_each_token_but_the_first_once(model, tokenizer, window):
    """A window hands its last token on to the next as the given one."""
    ids = tokenizer("The quick brown fox answers: A B C D.")["input_ids"]

    spans = list(log_likelihood._windows(ids, window))

    assert [token for piece, given in spans for token in piece[given:]] == ids[1:]
    assert all(len(piece) <= window for piece, _ in spans)


def test_a_pair_is_right_where_the_chosen_answer_is_likelier_a_token(model, tokenizer):
    one, other = "It is three.", "A B C D, or the quick brown fox."
    rows = held_out(pair(one, other), pair(other, one))

    found = scored(model, tokenizer, rows)

    head = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is one and two?"}], add_generation_prompt=True, tokenize=False
    )
    prompt = tokenizer(head, add_special_tokens=False)["input_ids"]
    by_answer = {}
    for answer in (one, other):
        ids = [*tokenizer(answer, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        by_answer[answer] = naive(model, prompt + ids, len(prompt))
    for row in rows:
        chosen, rejected = row["chosen"][0]["content"], row["rejected"][0]["content"]
        metrics = found[row["id"]].metrics
        assert metrics["preference_accuracy"] == float(by_answer[chosen] > by_answer[rejected])
        assert metrics["log_likelihood"] == pytest.approx(by_answer[chosen], rel=1e-5)
    assert {score.metrics["preference_accuracy"] for score in found.values()} == {0.0, 1.0}


def test_a_labelled_answer_counts_with_the_sign_of_its_label(model, tokenizer):
    good, bad = (scored(model, tokenizer, held_out(labelled("It is so.", label))) for label in (True, False))

    values = [score.metrics["signed_log_likelihood"] for found in (good, bad) for score in found.values()]
    assert values[0] == pytest.approx(-values[1])
    assert values[0] < 0


def test_chats_are_asked_and_not_scored_by_likelihood():
    chat = schema.content([schema.message("user", "Say 1"), schema.message("assistant", "1")])

    assert not log_likelihood.uses_log_likelihood(held_out(chat))
    assert log_likelihood.uses_log_likelihood(held_out(text("So.")))


def test_a_reward_model_judges_pairs_by_its_rewards(model, tokenizer):
    """A head that looks for the last token's embedding gives one of two answers more, whatever is likelier."""
    rows = held_out(pair("It is three.", "A B C D"), pair("A B C D", "It is three."))
    head = value_head.build_value_head(model, std=1.0)

    found = scored(model, tokenizer, rows, head=head)

    assert sum(score.metrics["preference_accuracy"] for score in found.values()) == 1
    head.summary.weight.data.neg_()
    turned = scored(model, tokenizer, rows, head=head)
    for item, score in found.items():
        assert turned[item].metrics["preference_accuracy"] == 1 - score.metrics["preference_accuracy"]


def test_virtual_tokens_in_front_of_a_text_are_not_scored(tiny_model, tokenizer):
    from peft import PromptTuningConfig, get_peft_model

    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    prompted = get_peft_model(load_model(tiny_model), config).eval()
    ids = tokenizer("The brown fox answers.")["input_ids"]

    with torch.inference_mode():
        rows = prompted(input_ids=torch.tensor([ids])).logits[0, 3:-1].log_softmax(-1)
    expected = rows.gather(1, torch.tensor(ids[1:])[:, None]).mean()

    assert log_likelihood.mean_log_likelihood(prompted, [(ids, 1)]) == pytest.approx(float(expected), abs=1e-5)
