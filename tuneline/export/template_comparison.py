"""Verify that a Go template reproduces a chat template: render many conversations with both and compare token ids."""

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from tuneline.data.chat_template import jinja_ast
from tuneline.errors import DataError
from tuneline.export import go_interpreter, go_template_writer
from tuneline.export import template_analysis as chats
from tuneline.export.template_analysis import ANSWER, START, TurnFormat

CONTENTS = (
    "What is 2+2?",
    "",
    '  It\'s <b>4</b> & "so" on \\ {{ .Content }} {% x %} {#  \n\n',
    "你好，世界 \u00e9\u0301 👩\u200d👩\u200d👧 \u202e\u0645\u0631\u062d\u0628\u0627",
    "\n",
    "\u3000\u00a0 wide spaces \u2003\u00a0",
    "line one\r\nline two\n\n```\n\tcode\n```\n",
    "'''\"\"\"$last := `x`",
    "system",
)
"""Contents of the turns in the comparison, used in rotation."""

ROLE_PATTERNS = ("U", "SU", "UAU", "SUAU", "UAUAU", "SUAUAUAU", "UAUAUAUAUAU")
"""Roles of the conversations; the Go template must reject those that the chat template rejects."""

RARE_ROLE_PATTERNS = ("AU", "AUAUAU", "SAU", "SUASU", "SUSUAU")
"""Rare role orders; if the Go template cannot reproduce them, they are rejected."""

THINKING_ANSWER = "<think>\nTwo and two.\n</think>\n\nIt is 4."


@dataclass
class TemplateComparison:
    """Result of comparing a chat template with its Go template."""

    conversations: int = 0
    tokens: int = 0
    limits: list[str] = field(default_factory=list)
    """Kinds of texts for which the Go template differs from the chat template."""

    notes: list[str] = field(default_factory=list)
    """Conversations that Ollama or the Go template rejects, and other restrictions."""

    @property
    def exact(self) -> bool:
        """Whether there is no difference."""
        return not self.limits


def adds_bos_token(folder: Path) -> bool:
    """Return whether Ollama prepends the BOS token to each prompt, as it reads from `tokenizer_config.json`."""
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return bool(config.get("add_bos_token")) and bool(config.get("bos_token"))


def remove_bos_token(turns: TurnFormat, bos: str) -> TurnFormat:
    """Remove the BOS token, which Ollama prepends.

    Raises:
        NotExpressibleError: The chat template does not start with the BOS token.
    """
    first = {pair: text for pair, text in turns.pieces.items() if pair[0] == START}
    if any(not text.startswith(bos) for text in first.values()):
        raise chats.NotExpressibleError(
            f"the chat template does not start with {bos!r}, which Ollama would prepend to each prompt because "
            "tokenizer_config.json has add_bos_token: true. Set it to false in the model's folder"
        )
    pieces = turns.pieces | {pair: text.removeprefix(bos) for pair, text in first.items()}
    return replace(turns, pieces=pieces)


def translate_template(tokenizer: PreTrainedTokenizerBase, *, bos: bool = False) -> tuple[str, TemplateComparison]:
    """Translate a tokenizer's chat template into Go's template language, and verify that both agree.

    Args:
        tokenizer: Tokenizer with the chat template.
        bos: Whether Ollama prepends the BOS token to each prompt.

    Raises:
        NotExpressibleError: The chat template has no equivalent.
        SourceError: The tokenizer has no chat template.
    """
    turns = chats.analyze_template(tokenizer)
    if bos:
        turns = remove_bos_token(turns, str(tokenizer.bos_token))
    pair = _TemplatePair(tokenizer, turns, bos=bos)
    if any(pair.difference(chat) for chat in pattern_conversations(RARE_ROLE_PATTERNS)):
        pair = _TemplatePair(tokenizer, turns.common_only(), bos=bos)
    for chat in [*pattern_conversations(ROLE_PATTERNS), *pattern_conversations(RARE_ROLE_PATTERNS)]:
        if difference := pair.difference(chat):
            raise chats.NotExpressibleError(
                f"the chat template has no equivalent in Go's language; example with {_describe_conversation(chat)}: "
                f"{difference}"
            )
    comparison = pair.comparison
    for description, chat in _special_conversations(tokenizer):
        if description not in comparison.limits and pair.difference(chat):
            comparison.limits.append(description)
    comparison.notes = _notes(tokenizer, pair)
    return pair.text, comparison


def _describe_conversation(chat: list[dict[str, str]]) -> str:
    """Return what is special in a conversation."""
    if any(message["role"] == "assistant" and not message["content"] for message in chat):
        return "an empty answer"
    return "an empty text" if any(not message["content"].strip() for message in chat) else "plain texts"


def pattern_conversations(patterns: tuple[str, ...]) -> Iterator[list[dict[str, str]]]:
    """Yield a conversation for each role pattern and each first content."""
    for start in range(len(CONTENTS)):
        for roles in patterns:
            chat = chats.conversation(roles, [CONTENTS[(start + i) % len(CONTENTS)] for i in range(len(roles))])
            if not any(message["role"] == "system" and message["content"].isspace() for message in chat):
                yield chat


def _special_conversations(tokenizer: PreTrainedTokenizerBase) -> Iterator[tuple[str, list[dict[str, str]]]]:
    """Yield conversations with the words that the chat template searches for."""
    yield (
        "thoughts (<think>...</think>) in earlier answers",
        chats.conversation("UAU", ["question", THINKING_ANSWER, "more"]),
    )
    for word in jinja_ast.find_keywords(str(tokenizer.chat_template)):
        closed = f"{word}text{word.replace('<', '</', 1)}" if word.startswith("<") else word
        for content in (word, f"before {word} after", closed):
            yield f"{word!r} in a question", chats.conversation("UAU", [content, "answer", content])
            yield f"{word!r} in an answer", chats.conversation("UAU", ["question", content, "more"])


class _TemplatePair:
    """A chat template and its Go template."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, turns: TurnFormat, *, bos: bool) -> None:
        self.turns, self.text, self.comparison = turns, go_template_writer.write_template(turns), TemplateComparison()
        self._template, self._tokenizer, self._bos = go_interpreter.Template(self.text), tokenizer, bos

    def difference(self, chat: list[dict[str, str]]) -> str:
        """Compare one conversation; returns a description of the difference, or an empty string."""
        try:
            expected = chats.render_prompt(self._tokenizer, self._with_empty_question(chat))
        except DataError:
            expected = None
        try:
            actual = self._template.execute(to_ollama_data(chat))
        except go_interpreter.GoTemplateError as error:
            if expected is None or self._is_rejected(chat):
                return ""
            return f"{error} where the chat template writes {expected!r}"
        if expected is None:
            return f"the chat template rejects {chat!r}, but the Go template writes {actual!r}"
        expected_ids = self._tokenizer(expected, add_special_tokens=False)["input_ids"]
        actual_ids = self._tokenizer(actual, add_special_tokens=False)["input_ids"]
        actual_ids = [self._tokenizer.bos_token_id, *actual_ids] if self._bos else actual_ids
        if expected_ids != actual_ids:
            return f"{expected!r} becomes {actual!r}"
        self.comparison.conversations += 1
        self.comparison.tokens += len(expected_ids)
        return ""

    def _with_empty_question(self, chat: list[dict[str, str]]) -> list[dict[str, str]]:
        """Insert an empty question before a leading answer, if the Go template renders it that way."""
        num_systems = len(list(itertools.takewhile(lambda message: message["role"] == "system", chat)))
        if not self.turns.inserts_empty_question or chat[num_systems]["role"] != "assistant":
            return chat
        return [*chat[:num_systems], {"role": "user", "content": ""}, *chat[num_systems:]]

    def _is_rejected(self, chat: list[dict[str, str]]) -> bool:
        """Return whether the Go template is designed to reject a conversation."""
        systems = [message["content"] for message in chat if message["role"] == "system"]
        if "" in systems and self.turns.empty_system == "rejected":
            return True
        roles = [START, *(message["role"] for message in chat), ANSWER]
        return any(pair not in self.turns.pieces for pair in itertools.pairwise(roles))


def to_ollama_data(chat: list[dict[str, str]]) -> dict[str, Any]:
    """Return the template data of a conversation in Ollama: consecutive turns of one role are joined."""
    joined: list[dict[str, str]] = []
    for message in chat:
        if joined and joined[-1]["Role"] == message["role"]:
            joined[-1]["Content"] += "\n\n" + message["content"]
        else:
            joined.append({"Role": message["role"], "Content": message["content"]})
    system = "\n\n".join(message["content"] for message in chat if message["role"] == "system")
    return {"System": system, "Messages": joined, "Response": ""}


def _notes(tokenizer: PreTrainedTokenizerBase, pair: _TemplatePair) -> list[str]:
    """Return the restrictions of the Go template."""
    notes, turns = [], pair.turns
    if "tools" in str(tokenizer.chat_template):
        notes.append("Function calls are omitted: Ollama rejects requests with tools.")
    if turns.empty_system == "rejected":
        notes.append("An empty system message is rejected.")
    if turns.inserts_empty_question:
        notes.append(
            "A conversation that starts with an answer, like a truncated one, is rendered after an empty question."
        )
    if not turns.prefill:
        notes.append("A conversation that ends with an answer is rejected: the chat template cannot continue it.")
    if (START, "system") in turns.pieces and pair.difference(chats.conversation("SU", [" ", "question"])):
        notes.append("A system message of only whitespace is rendered differently.")
    for (last, role), reason in turns.rejection_reasons.items():
        if role != ANSWER:
            position = f"after {last}" if last else "at the start"
            notes.append(f"A turn of {role} {position} is rejected: {reason}.")
    return notes
