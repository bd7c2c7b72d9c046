"""Incremental detokenization: token ids to text, as soon as the text is certain.

The concatenated texts equal the decoded whole: `tokenizer.decode(ids)` without the skipped special tokens. A byte-level
BPE is decoded from the bytes of its tokens, so that each token costs the same however long the answer is. Other
tokenizers decode a short window that starts with the previous word, because some of them drop a leading space; a token
that ends within a character is held back until the character is complete. (`tokenizers.decoders.DecodeStream` cannot be
flushed at the end of an answer, and holds back an answer of invalid bytes forever.)
"""

import codecs
import json
from collections.abc import Collection
from typing import Protocol
from weakref import WeakKeyDictionary

from transformers import PreTrainedTokenizerBase

from tuneline.data.tokenizer.fast_encoder import bytes_of_letters

MAX_PENDING = 16
"""Number of tokens after which text that ends within a character is emitted; a character has at most four bytes."""

INCOMPLETE = "\ufffd"
"""Replacement character that decoders write for an incomplete or invalid character."""


class Detokenizer(Protocol):
    """Converts the tokens of one answer to text."""

    def feed(self, token: int) -> str:
        """Return the text that is certain after this token."""
        ...

    def flush(self) -> str:
        """Return the rest of the text at the end of the answer."""
        ...


def special_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Return the ids of all special tokens, which `decode(..., skip_special_tokens=True)` omits."""
    marked = (i for i, token in tokenizer.added_tokens_decoder.items() if token.special)
    return frozenset((*marked, *tokenizer.all_special_ids))


def build_detokenizer(tokenizer: PreTrainedTokenizerBase, skipped: Collection[int]) -> Detokenizer:
    """Return the detokenizer for one answer.

    Args:
        tokenizer: The tokenizer of the model.
        skipped: Ids of tokens without text.
    """
    if is_byte_level(tokenizer):
        return ByteLevelDetokenizer(tokenizer, skipped)
    return WindowDetokenizer(tokenizer, skipped)


_BYTE_LEVEL: "WeakKeyDictionary[PreTrainedTokenizerBase, bool]" = WeakKeyDictionary()


def is_byte_level(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether the tokens are letters that stand for bytes (Radford et al. 2019), and nothing else changes."""
    if tokenizer not in _BYTE_LEVEL:
        backend = getattr(tokenizer, "_tokenizer", None)
        decoder = json.loads(backend.decoder.__getstate__()) if backend is not None and backend.decoder else {}
        _BYTE_LEVEL[tokenizer] = decoder.get("type") == "ByteLevel"
    return _BYTE_LEVEL[tokenizer]


class ByteLevelDetokenizer:
    """Detokenizer of a byte-level BPE."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, skipped: Collection[int]) -> None:
        self._token = tokenizer.convert_ids_to_tokens
        self._skipped = skipped
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, token: int) -> str:
        """Return the text that is certain after this token."""
        if token in self._skipped:
            return ""
        word, letters = self._token(token), bytes_of_letters()
        if word is None:  # the vocabulary of the model is larger than that of the tokenizer
            return ""
        try:
            data = bytes([letters[letter] for letter in word])
        except KeyError:  # an added token is text
            data = word.encode()
        return self._decoder.decode(data)

    def flush(self) -> str:
        """Return the rest of the text at the end of the answer."""
        return self._decoder.decode(b"", True)


class WindowDetokenizer:
    """Detokenizer of any tokenizer: decodes the last emitted tokens together with the new ones."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, skipped: Collection[int]) -> None:
        self._tokenizer, self._skipped = tokenizer, skipped
        self._context: list[int] = []
        """Tokens whose text was emitted last."""

        self._pending: list[int] = []

    def feed(self, token: int) -> str:
        """Return the text that is certain after this token."""
        if token in self._skipped or token >= len(self._tokenizer):
            return ""
        self._pending.append(token)
        before, text = self._decode(self._context), self._decode(self._context + self._pending)
        is_cut = len(text) <= len(before) or text.endswith(INCOMPLETE)
        if is_cut and len(self._pending) < MAX_PENDING:
            return ""
        if self._context or text:
            self._context, self._pending = self._pending, []
        return text[len(before) :]

    def flush(self) -> str:
        """Return the rest of the text at the end of the answer."""
        before, text = self._decode(self._context), self._decode(self._context + self._pending)
        self._pending = []
        return text[len(before) :]

    def _decode(self, ids: list[int]) -> str:
        if not ids:
            return ""
        return str(self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))
