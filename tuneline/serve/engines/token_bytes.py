"""Recover the tokens that llama.cpp's stream omits.

The server sends no event for a token that ends within a character: it waits for the token that completes it, and then
sends the text of all and the id of the last. The others follow from the text, the number of tokens, and the
vocabulary.
"""

import codecs
import re

from transformers import PreTrainedTokenizerBase

from tuneline.data.tokenizer.fast_encoder import bytes_of_letters

BYTE_TOKEN = re.compile(r"^<0x([0-9A-F]{2})>$")
SPACE = "\u2581"
"""Space in the tokens of SentencePiece."""


class TokenBytes:
    """The bytes of the tokens of a vocabulary."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        tokens = tokenizer.get_vocab()
        is_sentencepiece = "<0x00>" in tokens
        decode = _sentencepiece_bytes if is_sentencepiece else _byte_level_bytes
        added = {index: token.content.encode() for index, token in tokenizer.added_tokens_decoder.items()}
        self._bytes = {index: added.get(index) or decode(token) for token, index in tokens.items()}
        self._indices: dict[bytes, int] = {}
        for index, content in self._bytes.items():
            self._indices.setdefault(content, index)
        self.partial: int = next((index for index, content in self._bytes.items() if not _is_complete(content)), 0)
        """A token that ends within a character; stands for tokens that cannot be recovered."""

    def find(self, text: bytes, count: int, last: int) -> list[int] | None:
        """Return the tokens of a text.

        Args:
            text: The text of the tokens.
            count: Number of tokens.
            last: The last token.

        Returns:
            The tokens, or None if there are none; of several possible splits, the one with the longest first tokens.
        """
        end = self._bytes.get(last, b"")
        if not end or not text.endswith(end):
            return None
        found = self._split(text[: len(text) - len(end)], b"", count - 1)
        return None if found is None else [*found, last]

    def _split(self, rest: bytes, before: bytes, count: int) -> list[int] | None:
        """Split bytes into `count` tokens, each of which ends within a character."""
        if count == 0:
            return [] if not rest else None
        for size in range(len(rest), 0, -1):
            piece = rest[:size]
            index = self._indices.get(piece)
            if index is not None and not _is_complete(before + piece):
                found = self._split(rest[size:], before + piece, count - 1)
                if found is not None:
                    return [index, *found]
        return None


def _is_complete(text: bytes) -> bool:
    """Return whether a text does not end within a character."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="ignore")
    decoder.decode(text)
    return not decoder.getstate()[0]


def _sentencepiece_bytes(token: str) -> bytes:
    match = BYTE_TOKEN.match(token)
    return bytes([int(match[1], 16)]) if match else token.replace(SPACE, " ").encode()


def _byte_level_bytes(token: str) -> bytes:
    letters = bytes_of_letters()
    return bytes(letters[letter] for letter in token) if all(letter in letters for letter in token) else b""
