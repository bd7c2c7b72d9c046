"""The fast encoder produces the ids of the tokenizer itself for any text."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tests import tiny
from tuneline.data.tokenizer import fast_encoder
from tuneline.data.tokenizer.loader import load_tokenizer_from

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PRE_TOKENIZERS = {
    "gpt2": pre_tokenizers.ByteLevel(add_prefix_space=False),
    "digits": pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    ),
    "llama3": pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA3), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    ),
}
unusual = st.text(st.sampled_from("ab A1 2\n\t '’sS<|>.,!—é你好 \u3000\u00a0½²٣🙂\r\u2029\x04"), max_size=40)


def build(name):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = PRE_TOKENIZERS[name]
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=["<|im_end|>"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator([tiny.TEXT + " 12 345 it's \n\n  so—é"], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>")


@pytest.fixture(scope="module", params=sorted(PRE_TOKENIZERS))
def encoder(request):
    return fast_encoder.build_encoder(build(request.param))


@settings(deadline=None, max_examples=300)
@given(text=st.text(max_size=40) | unusual)
def test_tiktoken_produces_the_ids_of_the_tokenizer(encoder, text):
    assert encoder.engine == "tiktoken"
    assert encoder([text]) == encoder.encode_exact([text])


def test_a_special_token_in_the_text_is_encoded_as_by_the_tokenizer(encoder):
    assert encoder(["a<|im_end|>b"])[0].count(0) == 1


@settings(deadline=None, max_examples=100)
@given(text=unusual)
def test_pieces_around_added_tokens_have_the_ids_of_the_whole(encoder, text):
    text = f"{text}<|im_end|>\n{text}"

    assert [i for ids in encoder.encode_exact(encoder.pieces(text)) for i in ids] == encoder.encode_exact([text])[0]


def test_a_vocabulary_with_an_unreachable_token_is_encoded_by_the_tokenizer(tiny_model):
    import json

    tokenizer = load_tokenizer_from(tiny_model)
    config = json.loads(tokenizer._tokenizer.to_str())
    config["model"]["merges"] = config["model"]["merges"][:-1]
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(config))

    assert fast_encoder.build_encoder(tokenizer).engine == "tokenizers"


def test_another_kind_of_tokenizer_is_not_replaced():
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()

    assert fast_encoder.build_encoder(PreTrainedTokenizerFast(tokenizer_object=tokenizer)).engine == "tokenizers"


def test_a_tokenizer_that_adds_a_space_before_each_piece_is_not_split():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.train_from_iterator([tiny.TEXT], trainers.BpeTrainer(vocab_size=200))

    assert not fast_encoder.build_encoder(PreTrainedTokenizerFast(tokenizer_object=tokenizer)).is_piecewise


def test_characters_without_bytes_in_the_vocabulary_are_encoded_by_the_tokenizer():
    assert fast_encoder._missing_characters({*range(256)} - {0x04, 0xC3, 0xF1}) == (
        "[\\U00000004-\\U00000004\\U000000c0-\\U000000ff\\U00040000-\\U0007ffff]"
    )
    assert fast_encoder._missing_characters({*range(256)} - {0x80}) is None
