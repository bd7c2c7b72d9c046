"""Texts and bytes of single tokens, for log-probabilities."""

from weakref import WeakKeyDictionary

from transformers import PreTrainedTokenizerBase

from tuneline.data.tokenizer.fast_encoder import bytes_of_letters
from tuneline.serve.answers.detokenizer import is_byte_level

SPACE = "\u2581"
"""Stands for a space in the tokens of SentencePiece."""


class TokenTexts:
    """The bytes of the tokens of one tokenizer. A token may hold a part of a character."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._added = {i: str(token) for i, token in tokenizer.added_tokens_decoder.items()}
        self._is_byte_level = is_byte_level(tokenizer)
        self._cache: dict[int, tuple[str, list[int]]] = {}

    def get(self, token: int) -> tuple[str, list[int]]:
        """Return the text and the UTF-8 bytes of a token."""
        if token not in self._cache:
            data = self._encode(token)
            self._cache[token] = (data.decode(errors="replace"), list(data))
        return self._cache[token]

    def _encode(self, token: int) -> bytes:
        if token in self._added:
            return self._added[token].encode()
        word = self._tokenizer.convert_ids_to_tokens(token)
        if not isinstance(word, str):  # the vocabulary of the model is larger than that of the tokenizer
            return b""
        if self._is_byte_level:
            letters = bytes_of_letters()
            if all(letter in letters for letter in word):
                return bytes(letters[letter] for letter in word)
            return word.encode()
        if len(word) == 6 and word.startswith("<0x") and word.endswith(">"):  # byte fallback of SentencePiece
            return bytes([int(word[3:5], 16)])
        return word.replace(SPACE, " ").encode()


_TEXTS: "WeakKeyDictionary[PreTrainedTokenizerBase, TokenTexts]" = WeakKeyDictionary()


def get_token_texts(tokenizer: PreTrainedTokenizerBase) -> TokenTexts:
    """Return the token texts of a tokenizer, built once."""
    if tokenizer not in _TEXTS:
        _TEXTS[tokenizer] = TokenTexts(tokenizer)
    return _TEXTS[tokenizer]
