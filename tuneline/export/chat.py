"""A chat template of a tokenizer (Jinja) -> the same in Go's template language, which Ollama renders prompts with.

Nothing of the Jinja is translated. It is asked: conversations with marks in place of what is said are rendered, and the
pieces between the marks are what stands between a turn and the next one, by the roles of the two. So a system message
in the first question (Llama 2, Gemma, Mistral), a default system message and an opened or closed thinking block need
no rule of their own. Then both are rendered on conversations of all kinds, and compared. Where a piece depends on more
than the two roles, or a content comes out changed in a way that Go's language cannot follow, there is no such template.
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
"""What stands before the first turn."""

ANSWER = "answer"
"""What stands behind the last question."""

DATE_MARKER = "\ue002today\ue003"
DATE_MACRO = "{%- macro strftime_now(format) -%}" + DATE_MARKER + "{%- endmacro -%}"
"""Takes the place of the clock that transformers gives to templates."""

Transition = tuple[str, str]
"""Role of a turn, and of the next one, or `ANSWER`."""


REFUSAL_PREFIX = re.compile(r"^The chat template refuses a conversation of [\w, ]+: ")
"""How `render` begins to say that a template refuses roles."""

COMMON_TRANSITIONS: tuple[Transition, ...] = (
    (START, "system"),
    (START, "user"),
    ("system", "user"),
    ("user", "assistant"),
    ("assistant", "user"),
    ("user", ANSWER),
)
"""Transitions of a conversation that begins with a system message or a question, and ends with a question."""


class NotExpressibleError(VerificationError):
    """A chat template has no equal in Go's template language."""


@dataclass(frozen=True)
class TurnFormat:
    """What a chat template does, as far as Go's template language can say it."""

    pieces: dict[Transition, str]
    """What is written between two turns."""

    strips: dict[str, Strip] = field(default_factory=dict)
    """Role -> how white space around a content is left out, where it is."""

    empty_system: Literal["kept", "none", "refused"] = "kept"
    """An empty system message is written as others, as if there were none, or in a form of its own."""

    prefill: bool = True
    """A conversation that ends with an answer lets it go on."""

    inserts_empty_question: bool = False
    """A conversation that begins with an answer, as one that Ollama cut to fit, is shown behind an empty question."""

    why_not: dict[Transition, str] = field(default_factory=dict)
    """Why a transition has no piece."""

    def plain(self) -> "Turns":
        """Return the same without turns in an order that few conversations have."""
        odd = {pair: "it is written in another way there" for pair in self.pieces if pair not in COMMON_TRANSITIONS}
        kept = {pair: text for pair, text in self.pieces.items() if pair in COMMON_TRANSITIONS}
        return replace(self, pieces=kept, why_not=self.why_not | odd).whole()

    def whole(self) -> "Turns":
        """Return the same with a form for conversations that begin with an answer.

        Ollama drops the first turns of a conversation that is too long, one by one, and renders what is left each
        time; so there must be such a form, even where the chat template knows none.
        """
        heads = [head for head in (START, "system") if (head, "user") in self.pieces]
        if all((head, "assistant") in self.pieces for head in heads):
            return self
        answer = self.pieces["user", "assistant"]
        supposed = {(head, "assistant"): self.pieces[head, "user"] + answer for head in heads}
        why_not = {pair: why for pair, why in self.why_not.items() if pair[1] != "assistant"}
        return replace(self, pieces=self.pieces | supposed, inserts_empty_question=True, why_not=why_not)


def conversation(roles: str, contents: Iterable[str]) -> list[dict[str, str]]:
    """Return messages; roles are written by the letters S, U and A."""
    return [{"role": ROLES_BY_LETTER[role], "content": said} for role, said in zip(roles, contents, strict=True)]


def render_prompt(tokenizer: PreTrainedTokenizerBase, chat: list[dict[str, str]]) -> str:
    """Return the prompt that the chat template makes of a conversation.

    Raises:
        DataError: The template refuses the conversation.
    """
    messages = [message(each["role"], each["content"]) for each in chat]
    return render.apply_chat_template(messages, "", tokenizer, add_generation_prompt=True)


def analyze_template(tokenizer: PreTrainedTokenizerBase) -> TurnFormat:
    """Find out what a chat template does.

    Raises:
        NotExpressibleError: A piece depends on more than the roles beside it, a content is changed, or the date stands
            in it.
        SourceError: The tokenizer has no chat template.
    """
    if not isinstance(tokenizer.chat_template, str):
        raise SourceError("The tokenizer has no chat template, or several. Name one in the recipe: template: chatml.")
    pieces = _pieces(tokenizer, "UAUAU")
    why_not: dict[Transition, str] = {}
    for roles in ("SUAUAU", "AUAU", "SAUAU", "SUASUAU", "SUSU"):
        _add_transitions(tokenizer, roles, pieces, why_not)
    _check_no_date(tokenizer)
    has_system = (START, "system") in pieces
    used = ["user", "assistant", *(["system"] if has_system else [])]
    strips = {role: how for role in used if (how := _find_strip(tokenizer, role, has_system=has_system)) != NO_STRIP}
    empty = _empty_system(tokenizer, pieces) if has_system else "kept"
    return TurnFormat(pieces, strips, empty, _supports_prefill(tokenizer, pieces), why_not=why_not).whole()


def _add_transitions(
    tokenizer: PreTrainedTokenizerBase, roles: str, pieces: dict[Transition, str], why_not: dict[Transition, str]
) -> None:
    """Learn the transitions of a conversation that a template may refuse."""
    fresh = [pair for pair in _transitions(roles) if pair not in pieces]
    try:
        found = _pieces(tokenizer, roles, pieces)
    except (DataError, NotExpressibleError) as error:
        if roles == "SUAUAU" and isinstance(error, NotExpressibleError):
            raise
        reason = REFUSAL_PREFIX.sub("", str(error)).split(". ")[0].rstrip(".")
        why_not.update(dict.fromkeys(fresh, reason))
        return
    pieces.update(found)


def _transitions(roles: str) -> list[Transition]:
    names = [START, *(ROLES_BY_LETTER[role] for role in roles), ANSWER]
    return list(itertools.pairwise(names))


def _pieces(
    tokenizer: PreTrainedTokenizerBase, roles: str, known: dict[Transition, str] | None = None
) -> dict[Transition, str]:
    """Render a conversation with marks, and return what stands between them.

    Raises:
        NotExpressibleError: Contents are left out, moved or repeated, or a piece is not the same each time.
    """
    marks = [f"\ue000{i}\ue001" for i in range(len(roles))]
    rest, found = render_prompt(tokenizer, conversation(roles, marks)), dict(known or {})
    for mark in marks:
        if rest.count(mark) != 1:
            raise NotExpressibleError(
                "the chat template leaves out, repeats or moves what is said, which a Go template of turns does not"
            )
    cuts = []
    for mark in marks:
        before, there, rest = rest.partition(mark)
        if not there:
            raise NotExpressibleError("the chat template shows turns in another order")
        cuts.append(before)
    for pair, text in zip(_transitions(roles), [*cuts, rest], strict=True):
        if found.setdefault(pair, text) != text:
            raise NotExpressibleError(
                f"the chat template writes {text!r} between {pair[0] or 'the beginning'} and {pair[1]} in one place, "
                f"and {found[pair]!r} in another"
            )
    return found


def _check_no_date(tokenizer: PreTrainedTokenizerBase) -> None:
    before = tokenizer.chat_template
    tokenizer.chat_template = DATE_MACRO + str(before)
    try:
        shown = render_prompt(tokenizer, conversation("U", ["question"]))
    finally:
        tokenizer.chat_template = before
    if DATE_MARKER in shown:
        raise NotExpressibleError(
            "the chat template writes today's date, which a Go template cannot in the same form; give it one by "
            "template_arguments, like date_string, if it takes one"
        )


def _find_strip(tokenizer: PreTrainedTokenizerBase, role: str, *, has_system: bool) -> Strip:
    """Find out which white space around a content is left out; whatever else is done to it, the proof finds."""
    roles = "SUAU" if has_system else "UAU"
    contents = [f"\ue000{i}\ue001" for i in range(len(roles))]
    place = next(i for i, letter in enumerate(roles) if ROLES_BY_LETTER[letter] == role)
    padded = f"\n \t{contents[place]}\t \n"
    plain = render_prompt(tokenizer, conversation(roles, contents))
    text = render_prompt(tokenizer, conversation(roles, [*contents[:place], padded, *contents[place + 1 :]]))
    for how in STRIPS:
        shown = getattr(padded, how[0])(how[1]) if how[0] else padded
        if text == plain.replace(contents[place], shown):
            return how
    raise NotExpressibleError(f"the chat template changes what the {role} says in a way that is not followed here")


def _empty_system(
    tokenizer: PreTrainedTokenizerBase, pieces: dict[Transition, str]
) -> Literal["kept", "none", "refused"]:
    text = render_prompt(tokenizer, conversation("SU", ["", "question"]))
    if text == f"{pieces[START, 'system']}{pieces['system', 'user']}question{pieces['user', ANSWER]}":
        return "kept"
    return "none" if text == render_prompt(tokenizer, conversation("U", ["question"])) else "refused"


def _supports_prefill(tokenizer: PreTrainedTokenizerBase, pieces: dict[Transition, str]) -> bool:
    """Tell whether an answer that was begun stands at the end as it is, where it is to go on."""
    try:
        text = tokenizer.apply_chat_template(
            conversation("UA", ["question", "Sure, it"]), tokenize=False, continue_final_message=True
        )
    except Exception:  # whatever a template may raise
        return False
    return str(text) == f"{pieces[START, 'user']}question{pieces['user', 'assistant']}Sure, it"
