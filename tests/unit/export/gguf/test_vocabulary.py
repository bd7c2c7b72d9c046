"""Tokenizers in GGUF files: llama.cpp gives the token ids of the tokenizer, or the export is refused."""

import json
import shutil

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tests import tiny
from tests.gguf_models import build_gguf_model
from tuneline.config.sections.load import ModelLoadOptions
from tuneline.data.tokenizer.loader import load_tokenizer_from
from tuneline.errors import SourceError, VerificationError
from tuneline.export.gguf import proof, vocabulary, write
from tuneline.export.gguf.llama_server import running_server
from tuneline.export.gguf.vocabulary import CASE_PATTERN, CONTRACTION, GPT4_PATTERN
from tuneline.model.load import read_config

CORPUS = [tiny.TEXT, "It's 2026, they'll ISN'T naïve Straße 你好 世界 " * 20, "CamelCase 12345 !!! \n\n  x = y\n" * 20]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return build_gguf_model(
        tmp_path_factory.mktemp("vocabulary") / "model",
        vocab_size=512,
        hidden_size=64,
        num_attention_heads=2,
        num_key_value_heads=2,
    )


@pytest.fixture
def folder(source, tmp_path):
    return shutil.copytree(source, tmp_path / "copy")


def compare_tokens(folder, tmp_path):
    """Convert a model; returns the number of texts that llama.cpp tokenizes like the tokenizer, and notes."""
    notes = []
    write.convert(folder, tmp_path / "model.gguf", "f16", read_config(folder, ModelLoadOptions()), "tiny")
    with running_server(tmp_path / "model.gguf", context=64) as client:
        return proof.compare_tokens(load_tokenizer_from(folder), client, notes), notes


def save_byte_level(folder, pre, normalizer=None, ignore_merges=False, **keys):
    """Replace the tokenizer by a byte-level BPE with this pre-tokenizer."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = pre
    if normalizer:
        tokenizer.normalizer = normalizer
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", **keys
    )
    fast.chat_template = tiny.CHATML
    fast.save_pretrained(folder)


def split(pattern):
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), bytes_])


BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False)
PRE_TOKENIZERS = {
    "gpt-2": (BYTES, False),
    "smollm": (pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), BYTES]), False),
    "llama-bpe": (split(GPT4_PATTERN.replace("DIGITS", "{1,3}")), True),
    "dbrx": (split(GPT4_PATTERN.replace("DIGITS", "{1,3}")), False),
    "qwen2": (split(GPT4_PATTERN.replace("DIGITS", "")), False),
    "tekken": (split(CASE_PATTERN.replace("SUFFIX", "").replace("DIGITS", "")), True),
    "gpt-4o": (split(CASE_PATTERN.replace("SUFFIX", CONTRACTION).replace("DIGITS", "{1,3}")), False),
}


def test_every_known_pre_tokenizer_is_tested():
    assert set(PRE_TOKENIZERS) == set(vocabulary.PRE_TOKENIZERS.values())


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_llama_cpp_splits_texts_like_the_tokenizer(folder, tmp_path, name):
    pre, ignore_merges = PRE_TOKENIZERS[name]
    save_byte_level(folder, pre, ignore_merges=ignore_merges)
    assert vocabulary.read_vocabulary(folder, 512).pre == name

    assert compare_tokens(folder, tmp_path)[0] >= len(proof.TEXTS)


def test_normalization_to_nfc_is_noted(folder, tmp_path):
    save_byte_level(folder, PRE_TOKENIZERS["qwen2"][0], normalizers.NFC())

    _, notes = compare_tokens(folder, tmp_path)

    assert any("NFC" in note for note in notes)


def test_another_pre_tokenizer_is_refused(folder):
    save_byte_level(folder, split(r"\p{L}+|[^\p{L}]+"))
    with pytest.raises(SourceError, match="llama.cpp has no pre-tokenizer for"):
        vocabulary.read_vocabulary(folder, 512)
    save_byte_level(folder, BYTES, normalizers.Lowercase())
    with pytest.raises(SourceError, match="Lowercase"):
        vocabulary.read_vocabulary(folder, 512)


def test_a_wrong_pre_tokenizer_is_detected_by_its_tokens(folder, tmp_path, monkeypatch):
    save_byte_level(folder, PRE_TOKENIZERS["gpt-2"][0])
    monkeypatch.setattr(vocabulary, "_pre_tokenizer", lambda content: "smollm")

    with pytest.raises(VerificationError, match="llama.cpp tokenizes '0 1 12 123"):
        compare_tokens(folder, tmp_path)


def save_sentencepiece(folder, *, prefix):
    """Replace the tokenizer by a BPE with byte fallback, like those of Llama 2 (prefix) and Gemma."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    steps = [normalizers.Prepend("▁")] if prefix else []
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    bytes_ = [f"<0x{i:02X}>" for i in range(256)]
    special = ["<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=[*special, *bytes_], show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    content = json.loads(tokenizer.to_str())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] in special]
    (folder / "tokenizer.json").write_text(json.dumps(content))
    fast = PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    fast.chat_template = tiny.CHATML
    fast.save_pretrained(folder)


def test_sentencepiece_without_a_space_prefix_gives_the_same_tokens(folder, tmp_path):
    save_sentencepiece(folder, prefix=False)

    assert compare_tokens(folder, tmp_path)[0] >= len(proof.TEXTS)
    assert vocabulary.read_vocabulary(folder, 512).model == "llama"


def test_a_tokenizer_with_more_tokens_than_rows_is_refused(folder):
    with pytest.raises(SourceError, match="embeddings have 100 rows"):
        vocabulary.read_vocabulary(folder, 100)


def test_a_chat_template_that_llama_cpp_renders_differently_is_detected(folder, tmp_path, monkeypatch):
    original = vocabulary.add_vocabulary

    def add_other_template(writer, known, tokenizer):
        tokenizer.chat_template = tiny.CHATML.replace("<|im_end|>'", "<|im_end|> '")
        original(writer, known, tokenizer)

    monkeypatch.setattr(vocabulary, "add_vocabulary", add_other_template)

    with pytest.raises(VerificationError, match="llama.cpp renders"):
        write.write_gguf(folder, tmp_path / "model.gguf", "f16")
