"""Letter scores with a shared cache equal those of one forward pass per prompt."""

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tuneline.data.benchmarks.multiple_choice import LETTERS, Question
from tuneline.errors import SourceError
from tuneline.evaluation.generation import prefix_cache
from tuneline.evaluation.tasks import letter_logprobs
from tuneline.model.load import load_model

TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def model(tiny_model):
    """The tiny model in float32, with weights scaled up so that every token of a prompt affects the scores."""
    loaded = load_model(tiny_model).eval()
    with torch.no_grad():
        for weight in loaded.parameters():
            weight.mul_(6 if weight.dim() == 2 else 1)
    return loaded


@pytest.fixture(scope="module")
def tokenizer(tiny_model):
    """The tokenizer of the tiny model."""
    return AutoTokenizer.from_pretrained(tiny_model)


def question(i, answer="A"):
    return Question("high_school_biology", f" Which is {'one ' * i}? ", ("fox", "dog", str(i), "it"), answer)


def exam_prompts(count=7):
    shots = [question(20, "C"), question(21, "B")]
    return [letter_logprobs.prompt(question(i), shots) for i in range(count)]


def plain(model, tokenizer, prompts):
    """Score each prompt separately, without cache and padding."""
    ids = [tokenizer.convert_tokens_to_ids(f"Ġ{letter}") for letter in LETTERS]
    rows = []
    for text in prompts:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([tokenizer(text)["input_ids"]]), use_cache=False).logits
        rows.append(logits[0, -1].log_softmax(-1)[ids])
    return torch.stack(rows)


def byte_tokenizer():
    """Return a tokenizer of single bytes, for which ' A' is two tokens."""
    vocab = {token: i for i, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


CASES = {
    "prompts that share a prefix": exam_prompts(),
    "a single prompt": exam_prompts(1),
    "prompts without a shared prefix": ["One?", "What is it? Answer:", "The quick brown fox answers:"],
    "a prompt that begins another": ["What is", "What is one", "What is one and two"],
    "the same prompt twice": ["What is it?"] * 2,
}


@pytest.mark.parametrize("batch_tokens", [letter_logprobs.BATCH_TOKENS, 60, 1])
@pytest.mark.parametrize("prompts", CASES.values(), ids=CASES)
def test_letter_scores_equal_those_of_a_plain_forward_pass(model, tokenizer, prompts, batch_tokens):
    scores = letter_logprobs.letter_logprobs(model, tokenizer, prompts, batch_tokens=batch_tokens)

    assert scores.shape == (len(prompts), len(LETTERS))
    torch.testing.assert_close(scores, plain(model, tokenizer, prompts), rtol=0, atol=TOLERANCE)


def test_scores_of_questions_differ_by_more_than_the_tolerance(model, tokenizer):
    scores = plain(model, tokenizer, exam_prompts())

    assert scores.std(dim=0).min() > 50 * TOLERANCE


def test_shared_shots_are_computed_once(model, tokenizer, monkeypatch):
    letter_logprobs.letter_logprobs(model, tokenizer, exam_prompts(2))  # the first call probes the model
    batch_sizes = []
    forward = type(model).forward
    monkeypatch.setattr(
        type(model), "forward", lambda self, **k: (batch_sizes.append(k["input_ids"].numel()), forward(self, **k))[1]
    )
    prompts = exam_prompts()

    letter_logprobs.letter_logprobs(model, tokenizer, prompts, batch_tokens=1)

    assert len(batch_sizes) == len(prompts) + 1
    assert sum(batch_sizes) < sum(len(tokenizer(text)["input_ids"]) for text in prompts) / 2


def test_batches_do_not_exceed_the_token_limit():
    lengths = [5, 40, 7, 7, 12, 1]

    batches = list(prefix_cache.batches(lengths, batch_tokens=24))

    assert sorted(i for members in batches for i in members) == list(range(len(lengths)))
    assert all(len(members) == 1 or len(members) * max(lengths[i] for i in members) <= 24 for members in batches)


def test_a_prompt_has_the_format_of_the_mmlu_authors():
    shot = Question("world_religions", "Who? ", ("a", "b", "c", "d"), "B")
    question = Question("world_religions", " Why?", ("1", "2", "3", "4"), "D")

    assert letter_logprobs.prompt(question, [shot]) == (
        "The following are multiple choice questions (with answers) about world religions.\n\n"
        "Who?\nA. a\nB. b\nC. c\nD. d\nAnswer: B\n\n"
        "Why?\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer:"
    )


def test_a_tokenizer_that_splits_letters_is_refused(model):
    with pytest.raises(SourceError, match=r"does not encode ' A' to ' D' as one token each"):
        letter_logprobs.letter_logprobs(model, byte_tokenizer(), ["Answer:"])
