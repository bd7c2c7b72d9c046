"""Grammars: which tokens may follow, for one answer, by llguidance (numpy only: its torch module compiles kernels)."""

import json
from typing import Any
from weakref import WeakKeyDictionary

import llguidance
import llguidance.hf
import llguidance.numpy
import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from tuneline.serve.engines.interface import Grammar

JSON_WHITE_SPACE = r"(\n {0,16}| )?"
"""White space between the tokens of JSON: bounded, as small models otherwise write white space until the limit."""

_SILENT = 0
_TOKENIZERS: "WeakKeyDictionary[PreTrainedTokenizerBase, llguidance.LLTokenizer]" = WeakKeyDictionary()


def build_tokenizer(tokenizer: PreTrainedTokenizerBase) -> llguidance.LLTokenizer:
    """Return llguidance's view of a tokenizer; it takes 0.6 CPU seconds for a large vocabulary, and is cached.

    Raises:
        ValueError: The tokenizer is not a fast one.
    """
    if tokenizer not in _TOKENIZERS:
        if getattr(tokenizer, "_tokenizer", None) is None:
            raise ValueError("Grammars need a fast tokenizer (tokenizer.json), and this model has none.")
        _TOKENIZERS[tokenizer] = llguidance.hf.from_tokenizer(tokenizer)
    return _TOKENIZERS[tokenizer]


def compile_grammar(grammar: Grammar) -> str:
    """Return a grammar in llguidance's form.

    Raises:
        ValueError: It is not valid, or uses an unsupported feature; the message is that of llguidance.
    """
    match grammar.kind:
        case "json_object" | "json_schema":
            schema = json.loads(grammar.text) if grammar.kind == "json_schema" else {"type": "object"}
            options: Any = {"whitespace_pattern": JSON_WHITE_SPACE}
            compiled = llguidance.LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=options)
        case "lark":
            compiled = llguidance.LLMatcher.grammar_from_lark(grammar.text)
        case "regex":
            compiled = llguidance.LLMatcher.grammar_from_regex(grammar.text)
    if error := llguidance.LLMatcher.validate_grammar(compiled):
        raise ValueError(f"The {grammar.kind} is not supported: {error}")
    return compiled


class Constraint:
    """The state of a grammar in one answer."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase | llguidance.LLTokenizer,
        grammar: Grammar,
        vocab_size: int,
    ) -> None:
        """Create a constraint.

        Args:
            tokenizer: The tokenizer of the model, or the result of `build_tokenizer`.
            grammar: The grammar.
            vocab_size: Number of logits, which may be larger than the vocabulary of the tokenizer.

        Raises:
            ValueError: The grammar is not valid.
        """
        is_built = isinstance(tokenizer, llguidance.LLTokenizer)
        self._tokenizer = tokenizer if is_built else build_tokenizer(tokenizer)
        self._matcher = llguidance.LLMatcher(self._tokenizer, compile_grammar(grammar), log_level=_SILENT)
        if self._matcher.is_error():
            raise ValueError(f"The {grammar.kind} is not supported: {self._matcher.get_error()}")
        self._vocab_size = vocab_size
        self._bits = llguidance.numpy.allocate_token_bitmask(1, self._tokenizer.vocab_size)

    def mask(self) -> NDArray[np.bool_]:
        """Return which tokens may follow [vocab_size]; after the end of the grammar, only the end-of-sequence token.

        Raises:
            ValueError: The grammar became too complex.
        """
        llguidance.numpy.fill_next_token_bitmask(self._matcher, self._bits)
        if self._matcher.is_error():
            raise ValueError(f"The grammar failed: {self._matcher.get_error()}")
        num_known = min(self._vocab_size, self._tokenizer.vocab_size)
        allowed = np.zeros(self._vocab_size, np.bool_)
        allowed[:num_known] = np.unpackbits(self._bits.view(np.uint8)[0], count=num_known, bitorder="little")
        return allowed

    def accept(self, token: int) -> None:
        """Advance by a token.

        Raises:
            ValueError: The token does not follow the grammar.
        """
        if not self._matcher.consume_token(token):
            raise ValueError(f"Token {token} does not follow the grammar: {self._matcher.get_error()}")

    @property
    def is_done(self) -> bool:
        """Whether the text is complete, so that only the end-of-sequence token may follow."""
        return bool(self._matcher.is_stopped())

    @property
    def may_end(self) -> bool:
        """Whether the text so far is complete; more text may follow."""
        return bool(self._matcher.is_accepting())
