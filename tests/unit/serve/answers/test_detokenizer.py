"""Detokenization: the streamed text equals the decoded whole, for every kind of tokenizer."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tuneline.data.tokenizer.loader import load_tokenizer_from
from tuneline.serve.answers import detokenizer

WORDS = ["▁", "▁The", "▁fox", "The", "fox", ".", "!", "▁你", "好", "s"]
SENTENCES = st.lists(st.sampled_from(["The", "fox", "你好", "😀", "é", ".", "foxs"]), min_size=1, max_size=8)


@pytest.fixture(scope="module")
def byte_level(tiny_model):
    return load_tokenizer_from(tiny_model)


@pytest.fixture(scope="module")
def sentence_piece():
    """A tokenizer like Llama 2's: pieces with ▁ for a space, bytes for other characters, no leading space."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *WORDS]
    model = models.Unigram([(piece, -float(i)) for i, piece in enumerate(pieces)], unk_id=0, byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def stream(tokenizer, ids, skipped=()):
    reader = detokenizer.build_detokenizer(tokenizer, skipped)
    return [*(reader.feed(i) for i in ids), reader.flush()]


@settings(deadline=None, max_examples=200)
@given(ids=st.lists(st.integers(0, 359), max_size=30))
def test_byte_level_tokens_are_decoded_exactly_even_if_invalid(byte_level, ids):
    ids = [i for i in ids if i < len(byte_level)]
    special = detokenizer.special_ids(byte_level)

    text = "".join(stream(byte_level, ids, special))

    assert text == byte_level.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


@settings(deadline=None, max_examples=100)
@given(words=SENTENCES)
def test_pieces_keep_their_spaces_and_the_first_one_is_dropped(sentence_piece, words):
    ids = sentence_piece(" ".join(words), add_special_tokens=False)["input_ids"]

    assert "".join(stream(sentence_piece, ids)) == sentence_piece.decode(ids) == " ".join(words)


@pytest.mark.parametrize("name", ["byte_level", "sentence_piece"])
def test_a_character_is_emitted_when_its_last_byte_arrives(name, request):
    tokenizer = request.getfixturevalue(name)
    ids = tokenizer("fox 😀.", add_special_tokens=False)["input_ids"]

    parts = [part for part in stream(tokenizer, ids) if part]

    assert "".join(parts) == "fox 😀."
    assert all("\ufffd" not in part for part in parts)
    assert any(part.endswith("😀") for part in parts)


@pytest.mark.parametrize("name", ["byte_level", "sentence_piece"])
def test_an_incomplete_character_is_emitted_at_the_end(name, request):
    tokenizer = request.getfixturevalue(name)
    ids = tokenizer("😀", add_special_tokens=False)["input_ids"][:-1]

    parts = stream(tokenizer, ids)

    assert parts[-1]
    assert set("".join(parts).strip()) == {"\ufffd"}


@pytest.mark.parametrize("name", ["byte_level", "sentence_piece"])
def test_a_long_run_of_invalid_bytes_is_not_held_back(name, request):
    tokenizer = request.getfixturevalue(name)
    byte = tokenizer("😀", add_special_tokens=False)["input_ids"][-1]

    parts = stream(tokenizer, [byte] * 64)

    assert len("".join(parts[:40])) >= 16


@pytest.mark.parametrize("name", ["byte_level", "sentence_piece"])
def test_ids_beyond_the_vocabulary_have_no_text(name, request):
    tokenizer = request.getfixturevalue(name)

    assert "".join(stream(tokenizer, [len(tokenizer) + 5])) == ""
