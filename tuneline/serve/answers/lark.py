"""Writes grammars in llguidance's dialect of Lark."""

import json
from typing import Any

from transformers import PreTrainedTokenizerBase

from tuneline.serve.answers import detokenizer
from tuneline.serve.engines.constraint import JSON_WHITE_SPACE

ANY_TEXT = "/(?s:.*)/"


class Lark:
    """A grammar; special tokens in texts become references to their ids, as no text matches them."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        ids = sorted(detokenizer.special_ids(tokenizer))
        names = tokenizer.convert_ids_to_tokens(ids)
        self._special = {name: i for i, name in zip(ids, names, strict=True) if name}
        self._rules: list[str] = []

    def rule(self, expression: str, options: str = "") -> str:
        """Add a rule; return its name."""
        name = f"rule_{len(self._rules)}"
        self._rules.append(f"{name}{options}: {expression.strip() or chr(34) * 2}")
        return name

    def text(self, start: str) -> str:
        """Return the grammar that starts with an expression."""
        return "\n".join([f"start: {start.strip()}", *self._rules, ""])

    def literal(self, text: str) -> str:
        """Return the expression of a fixed text."""
        return " ".join(self._piece(piece) for piece in self._pieces(text))

    def json(self, schema: Any) -> str:
        """Return the expression of a JSON value."""
        if isinstance(schema, dict):
            schema = {**schema, "x-guidance": {"whitespace_pattern": JSON_WHITE_SPACE}}
        return self.rule(f"%json {json.dumps(schema)}")

    def text_until(self, end: str) -> str:
        """Return the expression of any text up to a fixed text, and that text."""
        first, *rest = self._pieces(end)
        if first in self._special:
            return self.rule(f"{ANY_TEXT} {self._piece(first)} {' '.join(map(self._piece, rest))}")
        until = self.rule(ANY_TEXT, f"[suffix={json.dumps(first, ensure_ascii=False)}]")
        return f"{until} {' '.join(map(self._piece, rest))}".strip()

    def _piece(self, piece: str) -> str:
        return f"<[{self._special[piece]}]>" if piece in self._special else json.dumps(piece, ensure_ascii=False)

    def _pieces(self, text: str) -> list[str]:
        """Split a text around its special tokens."""
        pieces = [text] if text else []
        for name in sorted(self._special, key=len, reverse=True):
            split = list[str]()
            for piece in pieces:
                if piece in self._special:
                    split.append(piece)
                    continue
                parts = piece.split(name)
                split += [entry for part in parts for entry in (part, name)][:-1]
            pieces = [piece for piece in split if piece]
        return pieces
