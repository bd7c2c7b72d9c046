"""Proof that a Go template is a chat template: conversations of all kinds, rendered by both, compared id by id."""

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from tuneline.data.chat_template import jinja_ast
from tuneline.errors import DataError
from tuneline.export import chat as chats
from tuneline.export import go_template, go_text
from tuneline.export.chat import ANSWER, START, TurnFormat

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
"""What turns say in the proof, in turn."""

ROLE_PATTERNS = ("U", "SU", "UAU", "SUAU", "UAUAU", "SUAUAUAU", "UAUAUAUAUAU")
"""Roles of the conversations; those that the chat template refuses are refused by the Go template, too."""

RARE_ROLE_PATTERNS = ("AU", "AUAUAU", "SAU", "SUASU", "SUSUAU")
"""Orders that few conversations have; where a chat template treats them in a way of its own, they are refused."""

THINKING_ANSWER = "<think>\nTwo and two.\n</think>\n\nIt is 4."


@dataclass
class TemplateComparison:
    """What was compared, and where the two differ."""

    conversations: int = 0
    tokens: int = 0
    limits: list[str] = field(default_factory=list)
    """Texts that the chat template treats in a way of its own, which the Go template does not."""

    told: list[str] = field(default_factory=list)
    """What Ollama refuses by itself, and what it is told by the Go template."""

    @property
    def exact(self) -> bool:
        """Whether no difference was found."""
        return not self.limits


def adds_bos_token(folder: Path) -> bool:
    """Tell whether Ollama puts the first token of a text before each prompt: it reads that in this file."""
    path = folder / "tokenizer_config.json"
    about = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return bool(about.get("add_bos_token")) and bool(about.get("bos_token"))


def remove_bos_token(turns: TurnFormat, bos: str) -> TurnFormat:
    """Leave the first token of a text to Ollama, which adds it.

    Raises:
        NotExpressibleError: The chat template does not begin with it, so that a prompt would begin otherwise.
    """
    first = {pair: text for pair, text in turns.pieces.items() if pair[0] == START}
    if any(not text.startswith(bos) for text in first.values()):
        raise chats.NotExpressibleError(
            f"the chat template does not begin with {bos!r}, which Ollama would put before each prompt, as "
            "tokenizer_config.json says add_bos_token: true. Set it to false in the model's folder"
        )
    pieces = turns.pieces | {pair: text.removeprefix(bos) for pair, text in first.items()}
    return replace(turns, pieces=pieces)


def translate_template(tokenizer: PreTrainedTokenizerBase, *, bos: bool = False) -> tuple[str, TemplateComparison]:
    """Write a tokenizer's chat template in Go's language, and prove that the two are the same.

    Args:
        tokenizer: Its chat template is the truth.
        bos: Ollama puts the first token of a text before each prompt.

    Raises:
        NotExpressibleError: There is no such template.
        SourceError: The tokenizer has no chat template.
    """
    turns = chats.analyze_template(tokenizer)
    if bos:
        turns = remove_bos_token(turns, str(tokenizer.bos_token))
    both = _TemplatePair(tokenizer, turns, bos=bos)
    if any(both.difference(chat) for chat in pattern_conversations(RARE_ROLE_PATTERNS)):
        both = _TemplatePair(tokenizer, turns.plain(), bos=bos)
    for chat in [*pattern_conversations(ROLE_PATTERNS), *pattern_conversations(RARE_ROLE_PATTERNS)]:
        if difference := both.difference(chat):
            raise chats.NotExpressibleError(
                f"the chat template has no equal in Go's language, as is seen with {_describe_conversation(chat)}: {difference}"
            )
    proof = both.proof
    for what, chat in _special_conversations(tokenizer):
        if what not in proof.limits and both.difference(chat):
            proof.limits.append(what)
    proof.told = _notes(tokenizer, both)
    return both.text, proof


def _describe_conversation(chat: list[dict[str, str]]) -> str:
    """Say what is unusual in a conversation."""
    if any(each["role"] == "assistant" and not each["content"] for each in chat):
        return "an empty answer"
    return "an empty text" if any(not each["content"].strip() for each in chat) else "plain texts"


def pattern_conversations(patterns: tuple[str, ...]) -> Iterator[list[dict[str, str]]]:
    """Yield a conversation for each pattern of roles and each text to begin with."""
    for start in range(len(CONTENTS)):
        for roles in patterns:
            chat = chats.conversation(roles, [CONTENTS[(start + i) % len(CONTENTS)] for i in range(len(roles))])
            if not any(each["role"] == "system" and each["content"].isspace() for each in chat):
                yield chat


def _special_conversations(tokenizer: PreTrainedTokenizerBase) -> Iterator[tuple[str, list[dict[str, str]]]]:
    """Yield conversations with the words that the chat template looks for."""
    yield (
        "thoughts (<think>...</think>) in earlier answers",
        chats.conversation("UAU", ["question", THINKING_ANSWER, "more"]),
    )
    for word in jinja_ast.find_keywords(str(tokenizer.chat_template)):
        closed = f"{word}text{word.replace('<', '</', 1)}" if word.startswith("<") else word
        for said in (word, f"before {word} after", closed):
            yield f"{word!r} in a question", chats.conversation("UAU", [said, "answer", said])
            yield f"{word!r} in an answer", chats.conversation("UAU", ["question", said, "more"])


class _TemplatePair:
    """A chat template and its form in Go, side by side."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, turns: TurnFormat, *, bos: bool) -> None:
        self.turns, self.text, self.proof = turns, go_text.write_template(turns), TemplateComparison()
        self._template, self._tokenizer, self._bos = go_template.Template(self.text), tokenizer, bos

    def difference(self, chat: list[dict[str, str]]) -> str:
        """Compare one conversation; returns in words what differs, or an empty text."""
        try:
            wanted = chats.render_prompt(self._tokenizer, self._supposed(chat))
        except DataError:
            wanted = None
        try:
            made = self._template.execute(to_ollama_data(chat))
        except go_template.GoTemplateError as error:
            if wanted is None or self._is_refused(chat):
                return ""
            return f"{error} where the chat template writes {wanted!r}"
        if wanted is None:
            return f"it refuses {chat!r}, and its Go form writes {made!r}"
        ids = self._tokenizer(wanted, add_special_tokens=False)["input_ids"]
        own = self._tokenizer(made, add_special_tokens=False)["input_ids"]
        own = [self._tokenizer.bos_token_id, *own] if self._bos else own
        if ids != own:
            return f"{wanted!r} becomes {made!r}"
        self.proof.conversations += 1
        self.proof.tokens += len(ids)
        return ""

    def _supposed(self, chat: list[dict[str, str]]) -> list[dict[str, str]]:
        """Put an empty question before an answer that has none, where that is how it is shown."""
        num_systems = len(list(itertools.takewhile(lambda each: each["role"] == "system", chat)))
        if not self.turns.inserts_empty_question or chat[num_systems]["role"] != "assistant":
            return chat
        return [*chat[:num_systems], {"role": "user", "content": ""}, *chat[num_systems:]]

    def _is_refused(self, chat: list[dict[str, str]]) -> bool:
        """Tell whether a conversation is one that the Go form is meant to refuse."""
        systems = [each["content"] for each in chat if each["role"] == "system"]
        if "" in systems and self.turns.empty_system == "refused":
            return True
        roles = [START, *(each["role"] for each in chat), ANSWER]
        return any(pair not in self.turns.pieces for pair in itertools.pairwise(roles))


def to_ollama_data(chat: list[dict[str, str]]) -> dict[str, Any]:
    """Return what Ollama gives a template of a conversation: turns of one role are one, all system messages too."""
    joined: list[dict[str, str]] = []
    for each in chat:
        if joined and joined[-1]["Role"] == each["role"]:
            joined[-1]["Content"] += "\n\n" + each["content"]
        else:
            joined.append({"Role": each["role"], "Content": each["content"]})
    system = "\n\n".join(each["content"] for each in chat if each["role"] == "system")
    return {"System": system, "Messages": joined, "Response": ""}


def _notes(tokenizer: PreTrainedTokenizerBase, both: _TemplatePair) -> list[str]:
    told, turns = [], both.turns
    if "tools" in str(tokenizer.chat_template):
        told.append("Calls of functions are left out: Ollama refuses requests with tools.")
    if turns.empty_system == "refused":
        told.append("An empty system message is refused.")
    if turns.inserts_empty_question:
        told.append("A conversation that begins with an answer, as one cut to fit, is shown behind an empty question.")
    if not turns.prefill:
        told.append("A conversation that ends with an answer is refused: the chat template lets none go on.")
    if (START, "system") in turns.pieces and both.difference(chats.conversation("SU", [" ", "question"])):
        told.append("A system message of white space alone is written otherwise.")
    for (last, role), why in turns.why_not.items():
        if role != ANSWER:
            after = f"behind {last}" if last else "at the beginning"
            told.append(f"A turn of {role} {after} is refused: {why}.")
    return told
