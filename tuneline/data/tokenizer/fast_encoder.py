"""Encoding: texts -> token ids, by the fastest way that is proven to give the tokenizer's own.

A byte-level BPE whose merges follow its ids is handed to tiktoken, which encodes several times faster than the
tokenizer's own library. tiktoken merges any two neighbours whose union is a token, where the tokenizer merges listed
pairs only; the two agree if every token is reached by its own merges (then the last merge of each is a listed pair,
and ranks order them alike), which is checked token by token. How text is cut into words is taken from the tokenizer's
own patterns. Texts that hold an added token (`<|im_end|>` typed by a user) go to the tokenizer itself, as do all texts
of any other tokenizer.
"""

import itertools
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from transformers import PreTrainedTokenizerBase

GPT2_WORDS = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""How ByteLevel cuts text into words (Radford et al. 2019)."""

DIGITS_THEN_GPT2_WORDS = r"\p{N}|'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s+"
"""The same after each digit was set apart: white space in front of a digit then ends its piece."""

PROBES = ("Hello", " there,\n\n  and", "\t1 234!", "…ça va?\r\n", "你好，世界", "'ll I'm  \n")


@dataclass(frozen=True)
class Encoder:
    """Turns texts into ids; `engine` is `tiktoken` or `tokenizers`."""

    tokenizer: PreTrainedTokenizerBase
    fast: Callable[[str], list[int]] | None
    engine: str
    lacking: str = ""
    """Character class of what the vocabulary has no bytes for; the tokenizer decides what becomes of it."""

    def __call__(self, texts: list[str]) -> list[list[int]]:
        """Return the ids of each text, without any that mark beginning or end."""
        if self.fast is None:
            return self.own(texts)
        fast, foreign = self.fast, self._foreign("".join(texts))
        found = [None if foreign(text) else fast(text) for text in texts]
        missing = [i for i, ids in enumerate(found) if ids is None]
        for i, ids in zip(missing, self.own([texts[i] for i in missing]), strict=True):
            found[i] = ids
        return found  # type: ignore[return-value]

    def own(self, texts: list[str]) -> list[list[int]]:
        """Return what the tokenizer itself makes of each text."""
        if not texts:
            return []
        backend = getattr(self.tokenizer, "_tokenizer", None)
        if backend is None:
            return list(self.tokenizer(texts, add_special_tokens=False)["input_ids"])
        return [found.ids for found in backend.encode_batch_fast(texts, add_special_tokens=False)]

    def holds_added_token(self, text: str) -> bool:
        """Tell whether a text holds a token that is found before the text is cut into words."""
        return self._added.search(text) is not None if self._added else False

    def _foreign(self, together: str) -> Callable[[str], bool]:
        """Return a test for texts that the tokenizer itself must encode, given all of them in one.

        What does not occur in all of them together is not looked for in each.
        """
        patterns = [self._added] if self._added and any(first in together for first in self._firsts) else []
        if self.lacking and re.search(self.lacking, together):
            patterns.append(re.compile(self.lacking))
        if not patterns:
            return lambda text: False
        search = re.compile("|".join(pattern.pattern for pattern in patterns)).search
        if len(patterns) > 1 or len(self._firsts) > 1:
            return lambda text: search(text) is not None
        (first,) = self._firsts
        return lambda text: first in text and search(text) is not None

    @cached_property
    def _firsts(self) -> set[str]:
        return {token.content[0] for token in self.tokenizer.added_tokens_decoder.values()}

    @cached_property
    def _added(self) -> "re.Pattern[str] | None":
        words = [token.content for token in self.tokenizer.added_tokens_decoder.values()]
        return re.compile("|".join(map(re.escape, sorted(words, key=len, reverse=True)))) if words else None

    @cached_property
    def joins(self) -> bool:
        """Whether a text may be cut where the caller likes at added tokens and encoded piece by piece.

        SentencePiece tokenizers put a space in front of each piece; added tokens may swallow the space beside them.
        """
        if any(token.lstrip or token.rstrip for token in self.tokenizer.added_tokens_decoder.values()):
            return False
        return all(
            a == b[0] + b[1]
            for word in PROBES
            for a, b in ((self.own([f"x\n{word}"])[0], self.own(["x\n", word])),)
            if not word[0].isspace()
        )

    def pieces(self, text: str) -> list[str]:
        """Cut a text around its added tokens, so that each piece can be encoded by itself."""
        if self._added is None:
            return [text] if text else []
        cut, start = [], 0
        for found in self._added.finditer(text):
            cut += [text[start : found.start()], found.group()]
            start = found.end()
        return [piece for piece in [*cut, text[start:]] if piece]


def build_encoder(tokenizer: PreTrainedTokenizerBase, *, allow_tiktoken: bool = True) -> Encoder:
    """Choose the engine for a tokenizer."""
    return (_tiktoken(tokenizer) if allow_tiktoken else None) or Encoder(tokenizer, None, "tokenizers")


def _tiktoken(tokenizer: PreTrainedTokenizerBase) -> Encoder | None:
    """Return tiktoken's encoder of the same vocabulary, or nothing where equality is not proven."""
    backend = getattr(tokenizer, "_tokenizer", None)
    if backend is None:
        return None
    about = json.loads(backend.to_str())
    pattern = _word_pattern(about)
    ranks = _ranks(about["model"], backend) if pattern else None
    lacking = _lacking({byte for word in ranks for byte in word}) if ranks else None
    if pattern is None or ranks is None or lacking is None:
        return None
    import tiktoken

    try:
        encoding = tiktoken.Encoding("own", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    except ValueError:  # a pattern that its regular expressions do not know
        return None
    found = Encoder(tokenizer, encoding._core_bpe.encode_ordinary, "tiktoken", lacking)
    return found if found(list(PROBES)) == found.own(list(PROBES)) else None


def _word_pattern(about: dict[str, Any]) -> str | None:
    """Return the pattern that cuts text into words, where the tokenizer's way is one that can be written as one."""
    if about["normalizer"] is not None or about["pre_tokenizer"] is None:
        return None
    parts = about["pre_tokenizer"].get("pretokenizers", [about["pre_tokenizer"]])
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
    """Return tiktoken's ranks, which are the ids, or nothing where merges could come out otherwise."""
    unusual = ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback")
    if model["type"] != "BPE" or any(model.get(name) for name in unusual):
        return None
    vocabulary, letters = model["vocab"], _bytes_of_letters()
    merged = [vocabulary.get("".join(pair if isinstance(pair, list) else pair.split(" "))) for pair in model["merges"]]
    in_order = None not in merged and all(a <= b for a, b in itertools.pairwise(merged))
    added = {token.content for token in backend.get_added_tokens_decoder().values()}
    words = {word: rank for word, rank in vocabulary.items() if word not in added}
    if not in_order:
        return None
    if any(not set(word) <= letters.keys() or len(backend.model.tokenize(word)) != 1 for word in words):
        return None
    return {bytes(letters[letter] for letter in word): rank for word, rank in words.items()}


def _bytes_of_letters() -> dict[str, int]:
    """Return the byte behind each letter of a byte-level vocabulary: printable ones are themselves."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + i): byte for i, byte in enumerate(others)}


def _lacking(present: set[int]) -> str | None:
    """Return the class of characters whose UTF-8 needs a byte that is not there; nothing if those are everywhere."""
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
