"""Texts and bytes of single tokens."""

import pytest
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from tuneline.serve.api.token_texts import TokenTexts, get_token_texts


@pytest.mark.parametrize("text", ["One and two", "Größe: 5 €", "\N{GRINNING FACE} 漢字"])
def test_the_bytes_of_byte_level_tokens_are_those_of_the_text(tokenizer, text):
    texts = TokenTexts(tokenizer)
    data = [byte for token in tokenizer(text)["input_ids"] for byte in texts.get(token)[1]]

    assert bytes(data).decode() == text


def test_a_part_of_a_character_is_shown_as_a_replacement_character(tokenizer):
    text, data = TokenTexts(tokenizer).get(tokenizer("€")["input_ids"][0])

    assert (text, data) == ("\ufffd", [0xE2])


def test_special_tokens_are_their_own_text(tokenizer):
    text, data = TokenTexts(tokenizer).get(tokenizer.eos_token_id)

    assert (text, bytes(data)) == ("<|im_end|>", b"<|im_end|>")


def test_tokens_of_sentencepiece_have_spaces_and_bytes():
    vocabulary = {"<unk>": 0, "<0xE2>": 1, "\u2581One": 2, "e": 3}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", byte_fallback=True))
    backend.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    texts = TokenTexts(PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>"))

    assert [bytes(texts.get(token)[1]) for token in (1, 2, 3)] == [b"\xe2", b" One", b"e"]


def test_an_id_beyond_the_tokenizer_has_no_text(tokenizer):
    assert TokenTexts(tokenizer).get(100_000) == ("", [])


def test_the_texts_of_a_tokenizer_are_built_once(tokenizer):
    assert get_token_texts(tokenizer) is get_token_texts(tokenizer)
