"""Fast encoder: texts to token ids with tiktoken, where its ids provably equal those of the tokenizer.

A byte-level BPE whose merges are ordered by id is encoded by tiktoken, which is several times faster than the
tokenizers library. tiktoken merges any two neighbours whose concatenation is a token, whereas the tokenizer merges
listed pairs only; both agree if every token can be reached by its own merges (then the last merge of each token is a
listed pair, and the order of ranks is the same), which is verified for every token. The patterns that split text into
words are taken from the tokenizer. Texts with an added token (`<|im_end|>` typed by a user) are encoded by the
tokenizer itself, as are all texts of other tokenizers.
"""

import itertools
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

from transformers import PreTrainedTokenizerBase

GPT2_WORDS = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""Pattern by which ByteLevel splits text into words (Radford et al. 2019)."""

DIGITS_THEN_GPT2_WORDS = r"\p{N}|'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s+"
"""The same pattern after individual digits were split off: white space before a digit then ends its piece."""

PROBES = ("Hello", " there,\n\n  and", "\t1 234!", "…ça va?\r\n", "你好，世界", "'ll I'm  \n")


@dataclass(frozen=True)
class Encoder:
    """Encodes texts to ids; `engine` is `tiktoken` or `tokenizers`."""

    tokenizer: PreTrainedTokenizerBase
    encode_fast: Callable[[str], list[int]] | None
    engine: str
    missing_characters: str = ""
    """Character class of characters whose bytes are not in the vocabulary; the tokenizer encodes texts with them."""

    def __call__(self, texts: list[str]) -> list[list[int]]:
        """Return the ids of each text, without start or end tokens."""
        if self.encode_fast is None:
            return self.encode_exact(texts)
        encode_fast, needs_tokenizer = self.encode_fast, self._fallback_test("".join(texts))
        encoded = [None if needs_tokenizer(text) else encode_fast(text) for text in texts]
        missing = [i for i, ids in enumerate(encoded) if ids is None]
        for i, ids in zip(missing, self.encode_exact([texts[i] for i in missing]), strict=True):
            encoded[i] = ids
        return encoded  # type: ignore[return-value]

    def encode_exact(self, texts: list[str]) -> list[list[int]]:
        """Return the ids of each text, encoded by the tokenizer itself."""
        if not texts:
            return []
        backend = getattr(self.tokenizer, "_tokenizer", None)
        if backend is None:
            return list(self.tokenizer(texts, add_special_tokens=False)["input_ids"])
        return [encoding.ids for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)]

    def _fallback_test(self, all_texts: str) -> Callable[[str], bool]:
        """Return a test for texts that the tokenizer itself must encode.

        Args:
            all_texts: The concatenated texts; patterns that do not occur in it are not searched for in each text.
        """
        patterns = [self._added] if self._added and any(first in all_texts for first in self._first_characters) else []
        if self.missing_characters and re.search(self.missing_characters, all_texts):
            patterns.append(re.compile(self.missing_characters))
        if not patterns:
            return lambda text: False
        search = re.compile("|".join(pattern.pattern for pattern in patterns)).search
        if len(patterns) > 1 or len(self._first_characters) > 1:
            return lambda text: search(text) is not None
        (first,) = self._first_characters
        return lambda text: first in text and search(text) is not None

    @cached_property
    def _first_characters(self) -> set[str]:
        """First characters of the added tokens."""
        return {token.content[0] for token in self.tokenizer.added_tokens_decoder.values()}

    @cached_property
    def _added(self) -> "re.Pattern[str] | None":
        """Pattern that matches any added token, longest first."""
        words = [token.content for token in self.tokenizer.added_tokens_decoder.values()]
        return re.compile("|".join(map(re.escape, sorted(words, key=len, reverse=True)))) if words else None

    @cached_property
    def is_piecewise(self) -> bool:
        """Whether a text may be split at added tokens and other boundaries, and encoded piece by piece.

        SentencePiece tokenizers prepend a space to each piece; added tokens may absorb adjacent white space.
        """
        if any(token.lstrip or token.rstrip for token in self.tokenizer.added_tokens_decoder.values()):
            return False
        return all(
            a == b[0] + b[1]
            for word in PROBES
            for a, b in ((self.encode_exact([f"x\n{word}"])[0], self.encode_exact(["x\n", word])),)
            if not word[0].isspace()
        )

    def pieces(self, text: str) -> list[str]:
        """Split a text around its added tokens, so that each piece can be encoded separately."""
        if self._added is None:
            return [text] if text else []
        pieces, start = [], 0
        for match in self._added.finditer(text):
            pieces += [text[start : match.start()], match.group()]
            start = match.end()
        return [piece for piece in [*pieces, text[start:]] if piece]

    def split(self, text: str, split_points: list[int]) -> list[str]:
        """Split the text of a conversation into the pieces that are encoded separately.

        Args:
            text: The rendered text.
            split_points: Where answers start, ascending: the prompt ends there at inference.
        """
        if not self.is_piecewise:
            return [text]
        bounds = [0, *split_points, len(text)]
        chunks = [text[a:b] for a, b in itertools.pairwise(bounds) if a < b]
        return [piece for chunk in chunks for piece in self.pieces(chunk)]


def build_encoder(tokenizer: PreTrainedTokenizerBase, *, allow_tiktoken: bool = True) -> Encoder:
    """Return the encoder of a tokenizer: tiktoken if it is proven to be equal, otherwise the tokenizer itself."""
    return (_tiktoken(tokenizer) if allow_tiktoken else None) or Encoder(tokenizer, None, "tokenizers")


def _tiktoken(tokenizer: PreTrainedTokenizerBase) -> Encoder | None:
    """Return a tiktoken encoder of the same vocabulary, or None if equality is not proven."""
    backend = getattr(tokenizer, "_tokenizer", None)
    if backend is None:
        return None
    config = json.loads(backend.to_str())
    pattern = _word_pattern(config)
    ranks = _ranks(config["model"], backend) if pattern else None
    missing_characters = _missing_characters({byte for word in ranks for byte in word}) if ranks else None
    if pattern is None or ranks is None or missing_characters is None:
        return None
    import tiktoken

    try:
        encoding = tiktoken.Encoding("own", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    except ValueError:  # tiktoken's regular expressions do not support the pattern
        return None
    encoder = Encoder(tokenizer, encoding._core_bpe.encode_ordinary, "tiktoken", missing_characters)
    return encoder if encoder(list(PROBES)) == encoder.encode_exact(list(PROBES)) else None


def _word_pattern(config: dict[str, Any]) -> str | None:
    """Return the pattern that splits text into words, or None if the tokenizer's splitting is not a single pattern."""
    if config["normalizer"] is not None or config["pre_tokenizer"] is None:
        return None
    parts = config["pre_tokenizer"].get("pretokenizers", [config["pre_tokenizer"]])
    last = parts[-1]
    if last["type"] != "ByteLevel" or last["add_prefix_space"]:
        return None
    match [part["type"] for part in parts[:-1]], last["use_regex"]:
        case [], True:
            return GPT2_WORDS
        case ["Digits"], True if parts[0]["individual_digits"]:
            return DIGITS_THEN_GPT2_WORDS
        case ["Split"], False if parts[0]["behavior"] == "Isolated" and not parts[0]["invert"]:
            return parts[0]["pattern"].get("Regex")
    return None


def _ranks(model: dict[str, Any], backend: Any) -> dict[bytes, int] | None:
    """Return the ids as tiktoken's ranks, or None if the merges could differ."""
    unusual = ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback")
    if model["type"] != "BPE" or any(model.get(name) for name in unusual):
        return None
    vocabulary, letters = model["vocab"], bytes_of_letters()
    merged = [vocabulary.get("".join(pair if isinstance(pair, list) else pair.split(" "))) for pair in model["merges"]]
    in_order = None not in merged and all(a <= b for a, b in itertools.pairwise(merged))
    added = {token.content for token in backend.get_added_tokens_decoder().values()}
    words = {word: rank for word, rank in vocabulary.items() if word not in added}
    if not in_order:
        return None
    if any(not set(word) <= letters.keys() or len(backend.model.tokenize(word)) != 1 for word in words):
        return None
    return {bytes(letters[letter] for letter in word): rank for word, rank in words.items()}


@cache
def bytes_of_letters() -> dict[str, int]:
    """Return the byte that each letter of a byte-level vocabulary represents: printable bytes are themselves."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + i): byte for i, byte in enumerate(others)}


def _missing_characters(present: set[int]) -> str | None:
    """Return the character class whose UTF-8 needs a byte outside `present`; None if a continuation byte is missing."""
    ranges = []
    for byte in sorted(set(range(256)) - present):
        if 0x80 <= byte < 0xC0:
            return None
        if byte < 0x80:
            ranges.append((byte, byte))
        elif 0xC2 <= byte < 0xE0:
            ranges.append(((byte & 0x1F) << 6, ((byte & 0x1F) << 6) + 0x3F))
        elif 0xE0 <= byte < 0xF0:
            ranges.append(((byte & 0x0F) << 12, ((byte & 0x0F) << 12) + 0xFFF))
        elif 0xF0 <= byte < 0xF5:
            ranges.append(((byte & 0x07) << 18, min(((byte & 0x07) << 18) + 0x3FFFF, 0x10FFFF)))
    return "".join(["[", *(f"\\U{a:08x}-\\U{b:08x}" for a, b in ranges), "]"]) if ranges else ""
