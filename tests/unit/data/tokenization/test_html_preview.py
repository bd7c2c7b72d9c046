"""Sequences as text spans: the spans concatenate to the whole text, and spans with loss are separate."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tuneline.data.tokenization import html_preview
from tuneline.data.tokenization.html_preview import PreviewSequence
from tuneline.data.tokenization.loss_mask import TokenizedSequence
from tuneline.data.tokenizer.loader import load_tokenizer_from


def space_in_front():
    """A tokenizer that writes a space in front of each text, and leaves it out when it decodes one."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    trainer = trainers.BpeTrainer(vocab_size=60, special_tokens=["<s>", "</s>"])
    tokenizer.train_from_iterator(["the quick brown fox " * 9], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


@pytest.fixture(scope="module", params=["bytes", "space in front"])
def tokenizer(request, tiny_model):
    return load_tokenizer_from(tiny_model) if request.param == "bytes" else space_in_front()


@settings(deadline=None, max_examples=50)
@given(words=st.lists(st.sampled_from(["the", "quick", "fox"]), min_size=1, max_size=8), data=st.data())
def test_the_spans_of_a_sequence_concatenate_to_its_text(tokenizer, words, data):
    ids = [*tokenizer(" ".join(words), add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    bounds = data.draw(st.tuples(st.integers(0, len(ids)), st.integers(0, len(ids))).map(sorted))

    spans = html_preview.text_spans(TokenizedSequence("00", ids, [], [tuple(bounds)]), tokenizer)

    assert "".join(span.text for span in spans) == tokenizer.decode(ids)
    assert [span.text for span in spans if span.special] == [tokenizer.eos_token]


def test_the_first_token_has_no_loss(tokenizer):
    ids = tokenizer("the quick fox", add_special_tokens=False)["input_ids"]
    tokens = TokenizedSequence("00", ids, [], [(0, len(ids))])

    assert [span.trained for span in html_preview.text_spans(tokens, tokenizer)] == [False, True]
    assert html_preview.count_trained_tokens(tokens) == len(ids) - 1


def test_the_histogram_has_no_empty_bins_at_its_ends():
    counts = {"lengths": {"edges": [0, 10, 20, 30, 40], "counts": [0, 3, 0, 0]}}

    assert html_preview.histogram_bars(counts) == [(10, 20, 3)]


def test_the_page_of_a_split_contains_its_counts(tiny_model):
    tokenizer = load_tokenizer_from(tiny_model)
    counts = {"coverage": 0.4321, "tokens": 12345, "dropped": {"empty": 2}, "lengths": {"edges": [0, 9], "counts": [1]}}

    sequences = html_preview.preview(
        [PreviewSequence(TokenizedSequence("00", tokenizer("a b")["input_ids"], [], []))], tokenizer
    )
    page = html_preview.render_split(sequences, counts)

    for value in ("43.2%", "12,345", "empty 2", "0 to 9"):
        assert f"<td>{value}</td>" in page
