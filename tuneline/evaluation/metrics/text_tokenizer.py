"""Tokenization of texts for metrics: by words, or by characters for scripts without spaces."""

import re
from collections.abc import Sequence
from typing import Literal

from rouge_score.tokenizers import DefaultTokenizer, Tokenizer

Cut = Literal["words", "characters"]

_SPACELESS = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff"
_TOKENS = re.compile(f"[{_SPACELESS}]|[^\\W_{_SPACELESS}]+")
_HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")
_WITHOUT_SPACES = re.compile(f"[{_SPACELESS}]")

NAMES = {
    "words": "words of rouge_score 0.1.2",
    "characters": "one token per character of Han, kana and hangul, words otherwise",
}
"""Descriptions for the report."""


def resolve_cut(chosen: str, references: Sequence[str]) -> Cut:
    """Resolve `evaluate.cut`: `auto` means characters if over a tenth of the letters are of scripts without spaces."""
    if chosen == "words" or chosen == "characters":
        return "words" if chosen == "words" else "characters"
    letters = sum(character.isalpha() for text in references for character in text)
    spaceless = sum(len(_WITHOUT_SPACES.findall(text)) for text in references)
    return "characters" if spaceless > letters / 10 else "words"


def tokenizer(cut: Cut, *, use_stemmer: bool = False) -> Tokenizer:
    """Return a tokenizer for rouge_score; its default one splits by words and keeps only a to z and digits."""
    return DefaultTokenizer(use_stemmer) if cut == "words" else CharacterTokenizer()


class CharacterTokenizer(Tokenizer):
    """One token per character of scripts without spaces, words otherwise. Uses no dictionary."""

    def tokenize(self, text: str) -> list[str]:
        """Split a text into tokens."""
        return _TOKENS.findall(text.lower())


def bleu_tokenizer(cut: Cut, references: Sequence[str]) -> str:
    """Return sacrebleu's tokenizer: `13a` for words, `zh` for Chinese, `char` for other scripts without spaces."""
    if cut == "words":
        return "13a"
    han, spaceless = (sum(len(each.findall(text)) for text in references) for each in (_HAN, _WITHOUT_SPACES))
    return "zh" if 2 * han >= spaceless else "char"
