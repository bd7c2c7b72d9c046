"""How texts are cut into tokens before they are compared: by words, or by characters where a script has no spaces."""

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
    "characters": "one token a character of Han, kana and hangul, words otherwise",
}
"""What the report says beside the score."""


def resolve_cut(chosen: str, references: Sequence[str]) -> Cut:
    """Return how texts are cut: as the recipe says; by itself, by characters where a tenth of the letters wants it."""
    if chosen == "words" or chosen == "characters":
        return "words" if chosen == "words" else "characters"
    letters = sum(character.isalpha() for text in references for character in text)
    spaceless = sum(len(_WITHOUT_SPACES.findall(text)) for text in references)
    return "characters" if spaceless > letters / 10 else "words"


def tokenizer(cut: Cut, *, use_stemmer: bool = False) -> Tokenizer:
    """Return a tokenizer as rouge_score takes them; its own cuts by words and keeps a to z and digits alone."""
    return DefaultTokenizer(use_stemmer) if cut == "words" else CharacterTokenizer()


class CharacterTokenizer(Tokenizer):
    """One token a character of scripts without spaces, every other script by words: no dictionary."""

    def tokenize(self, text: str) -> list[str]:
        """Cut a text."""
        return _TOKENS.findall(text.lower())


def bleu_tokenizer(cut: Cut, references: Sequence[str]) -> str:
    """Return sacrebleu's name of a tokenizer: `13a` for words, `zh` for Chinese, `char` for other such scripts."""
    if cut == "words":
        return "13a"
    han, spaceless = (sum(len(each.findall(text)) for text in references) for each in (_HAN, _WITHOUT_SPACES))
    return "zh" if 2 * han >= spaceless else "char"
