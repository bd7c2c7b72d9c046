"""Analyze a tokenizer's chat template (Jinja) for translation into Go's template language, which Ollama uses.

The Jinja source is not translated. Conversations with markers as contents are rendered, and the texts between the
markers are the separators between two turns, by their roles. This covers a system message in the first question (Llama
2, Gemma, Mistral), a default system message, and an open or closed thinking block without special rules. `proof` then
compares both templates on many conversations. A template is not expressible if a separator depends on more than the two
roles, or if it changes a content in a way that Go's language cannot reproduce.
"""

import itertools
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Literal

from transformers import PreTrainedTokenizerBase

from tuneline.data.chat_template import render
from tuneline.data.schema import message
from tuneline.data.tokenization.template_compiler import NO_STRIP, STRIPS, Strip
from tuneline.errors import DataError, SourceError, VerificationError

ROLES_BY_LETTER = {"S": "system", "U": "user", "A": "assistant"}
START = ""
"""Pseudo-role before the first turn."""

ANSWER = "answer"
"""Pseudo-role after the last question."""

DATE_MARKER = "\ue002today\ue003"
DATE_MACRO = "{%- macro strftime_now(format) -%}" + DATE_MARKER + "{%- endmacro -%}"
"""Replaces the clock function that transformers provides to templates."""

Transition = tuple[str, str]
"""Role of a turn, and role of the next one or `ANSWER`."""


REFUSAL_PREFIX = re.compile(r"^The chat template refuses a conversation of [\w, ]+: ")
"""Start of the error message of `render` for rejected roles."""

COMMON_TRANSITIONS: tuple[Transition, ...] = (
    (START, "system"),
    (START, "user"),
    ("system", "user"),
    ("user", "assistant"),
    ("assistant", "user"),
    ("user", ANSWER),
)
"""Transitions of a conversation that starts with a system message or a question and ends with a question."""


class NotExpressibleError(VerificationError):
    """A chat template has no equivalent in Go's template language."""


@dataclass(frozen=True)
class TurnFormat:
    """Behavior of a chat template, as far as Go's template language can express it."""

    pieces: dict[Transition, str]
    """Separators: text between two turns."""

    strips: dict[str, Strip] = field(default_factory=dict)
    """Role -> how whitespace around a content is stripped, if it is."""

    empty_system: Literal["rendered", "omitted", "rejected"] = "rendered"
    """Whether an empty system message is rendered like others, omitted, or in a different form, which is rejected."""

    prefill: bool = True
    """Whether a conversation that ends with an answer can be continued."""

    inserts_empty_question: bool = False
    """Whether a conversation that starts with an answer, like one truncated by Ollama, gets an empty question first."""

    rejection_reasons: dict[Transition, str] = field(default_factory=dict)
    """Unsupported transition -> reason."""

    def common_only(self) -> "TurnFormat":
        """Return this format without rare transitions."""
        rare = {pair: "its format differs there" for pair in self.pieces if pair not in COMMON_TRANSITIONS}
        common = {pair: text for pair, text in self.pieces.items() if pair in COMMON_TRANSITIONS}
        return replace(self, pieces=common, rejection_reasons=self.rejection_reasons | rare).with_leading_answer()

    def with_leading_answer(self) -> "TurnFormat":
        """Return this format with support for conversations that start with an answer.

        Ollama drops the first turns of a conversation that is too long, one by one, and renders the rest each time. The
        format must therefore support a leading answer, even if the chat template does not.
        """
        heads = [head for head in (START, "system") if (head, "user") in self.pieces]
        if all((head, "assistant") in self.pieces for head in heads):
            return self
        answer = self.pieces["user", "assistant"]
        inserted = {(head, "assistant"): self.pieces[head, "user"] + answer for head in heads}
        reasons = {pair: reason for pair, reason in self.rejection_reasons.items() if pair[1] != "assistant"}
        return replace(self, pieces=self.pieces | inserted, inserts_empty_question=True, rejection_reasons=reasons)


def conversation(roles: str, contents: Iterable[str]) -> list[dict[str, str]]:
    """Return messages with these contents; roles are given by the letters S, U and A."""
    pairs = zip(roles, contents, strict=True)
    return [{"role": ROLES_BY_LETTER[role], "content": content} for role, content in pairs]


def render_prompt(tokenizer: PreTrainedTokenizerBase, chat: list[dict[str, str]]) -> str:
    """Render a conversation with the chat template, including the header of the answer.

    Raises:
        DataError: The template rejects the conversation.
    """
    messages = [message(turn["role"], turn["content"]) for turn in chat]
    return render.apply_chat_template(messages, "", tokenizer, add_generation_prompt=True)


def analyze_template(tokenizer: PreTrainedTokenizerBase) -> TurnFormat:
    """Determine the format of a chat template.

    Raises:
        NotExpressibleError: A separator depends on more than the adjacent roles, a content is changed, or the template
            contains the date.
        SourceError: The tokenizer has no chat template.
    """
    if not isinstance(tokenizer.chat_template, str):
        raise SourceError("The tokenizer has no chat template, or several. Set one in the recipe: template: chatml.")
    pieces = _pieces(tokenizer, "UAUAU")
    reasons: dict[Transition, str] = {}
    for roles in ("SUAUAU", "AUAU", "SAUAU", "SUASUAU", "SUSU"):
        _add_transitions(tokenizer, roles, pieces, reasons)
    _check_no_date(tokenizer)
    has_system = (START, "system") in pieces
    used_roles = ["user", "assistant", *(["system"] if has_system else [])]
    strips = {role: _find_strip(tokenizer, role, has_system=has_system) for role in used_roles}
    strips = {role: strip for role, strip in strips.items() if strip != NO_STRIP}
    empty = _empty_system(tokenizer, pieces) if has_system else "rendered"
    prefill = _supports_prefill(tokenizer, pieces)
    return TurnFormat(pieces, strips, empty, prefill, rejection_reasons=reasons).with_leading_answer()


def _add_transitions(
    tokenizer: PreTrainedTokenizerBase, roles: str, pieces: dict[Transition, str], reasons: dict[Transition, str]
) -> None:
    """Add the transitions of a conversation, or the reason why the template rejects it."""
    new_transitions = [pair for pair in _transitions(roles) if pair not in pieces]
    try:
        new_pieces = _pieces(tokenizer, roles, pieces)
    except (DataError, NotExpressibleError) as error:
        if roles == "SUAUAU" and isinstance(error, NotExpressibleError):
            raise
        reason = REFUSAL_PREFIX.sub("", str(error)).split(". ")[0].rstrip(".")
        reasons.update(dict.fromkeys(new_transitions, reason))
        return
    pieces.update(new_pieces)


def _transitions(roles: str) -> list[Transition]:
    names = [START, *(ROLES_BY_LETTER[role] for role in roles), ANSWER]
    return list(itertools.pairwise(names))


def _pieces(
    tokenizer: PreTrainedTokenizerBase, roles: str, known: dict[Transition, str] | None = None
) -> dict[Transition, str]:
    """Render a conversation of markers and return the separators between them.

    Raises:
        NotExpressibleError: Contents are omitted, moved or repeated, or a separator varies.
    """
    markers = [f"\ue000{i}\ue001" for i in range(len(roles))]
    rest, pieces = render_prompt(tokenizer, conversation(roles, markers)), dict(known or {})
    for marker in markers:
        if rest.count(marker) != 1:
            raise NotExpressibleError(
                "the chat template omits, repeats or moves contents, which a Go template of turns cannot reproduce"
            )
    separators = []
    for marker in markers:
        before, match, rest = rest.partition(marker)
        if not match:
            raise NotExpressibleError("the chat template renders turns in a different order")
        separators.append(before)
    for pair, text in zip(_transitions(roles), [*separators, rest], strict=True):
        if pieces.setdefault(pair, text) != text:
            raise NotExpressibleError(
                f"the chat template writes {text!r} between {pair[0] or 'the start'} and {pair[1]} in one place, and "
                f"{pieces[pair]!r} in another"
            )
    return pieces


def writes_date(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether the chat template writes the current date into a prompt."""
    original = tokenizer.chat_template
    tokenizer.chat_template = DATE_MACRO + str(original)
    try:
        return DATE_MARKER in render_prompt(tokenizer, conversation("U", ["question"]))
    finally:
        tokenizer.chat_template = original


def _check_no_date(tokenizer: PreTrainedTokenizerBase) -> None:
    if writes_date(tokenizer):
        raise NotExpressibleError(
            "the chat template writes today's date, which a Go template cannot reproduce; set a fixed date in "
            "template_arguments, like date_string, if the template supports it"
        )


def _find_strip(tokenizer: PreTrainedTokenizerBase, role: str, *, has_system: bool) -> Strip:
    """Determine which whitespace around a content is stripped; the comparison in `proof` detects other changes."""
    roles = "SUAU" if has_system else "UAU"
    contents = [f"\ue000{i}\ue001" for i in range(len(roles))]
    position = next(i for i, letter in enumerate(roles) if ROLES_BY_LETTER[letter] == role)
    padded = f"\n \t{contents[position]}\t \n"
    plain = render_prompt(tokenizer, conversation(roles, contents))
    text = render_prompt(tokenizer, conversation(roles, [*contents[:position], padded, *contents[position + 1 :]]))
    for strip in STRIPS:
        stripped = getattr(padded, strip[0])(strip[1]) if strip[0] else padded
        if text == plain.replace(contents[position], stripped):
            return strip
    raise NotExpressibleError(f"the chat template changes the content of the {role} in an unsupported way")


def _empty_system(
    tokenizer: PreTrainedTokenizerBase, pieces: dict[Transition, str]
) -> Literal["rendered", "omitted", "rejected"]:
    text = render_prompt(tokenizer, conversation("SU", ["", "question"]))
    if text == f"{pieces[START, 'system']}{pieces['system', 'user']}question{pieces['user', ANSWER]}":
        return "rendered"
    return "omitted" if text == render_prompt(tokenizer, conversation("U", ["question"])) else "rejected"


def _supports_prefill(tokenizer: PreTrainedTokenizerBase, pieces: dict[Transition, str]) -> bool:
    """Return whether a partial answer is rendered unchanged at the end with `continue_final_message`."""
    try:
        text = tokenizer.apply_chat_template(
            conversation("UA", ["question", "Sure, it"]), tokenize=False, continue_final_message=True
        )
    except Exception:  # a template may raise anything
        return False
    return str(text) == f"{pieces[START, 'user']}question{pieces['user', 'assistant']}Sure, it"
