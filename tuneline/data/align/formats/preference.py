"""Preference: one prompt with a better and a worse answer, `chosen` and `rejected`.

The prompt is text, or turns of a chat, or what `chosen` and `rejected` have in common where both hold the whole chat,
as turns or as a transcript of hh-rlhf.
Of answers in order of preference (a list in `responses` or `output`), the first and the last make the pair.
"""

from typing import Any

from tuneline.config.sections.sources import Tags
from tuneline.data.align.formats import chat, fields, tool_calls, transcript
from tuneline.data.align.formats.base import Format, Record, formats
from tuneline.data.schema import Content, Message, content, message
from tuneline.errors import DataError

RANKED_COLUMNS = ("responses", "output")
PROMPT_COLUMNS = (*fields.TURN_COLUMNS, *fields.QUESTION_COLUMNS)


def align_preference(record: Record, tags: Tags) -> Content:
    """Read prompt and pair.

    Raises:
        DataError: There is no prompt, or no pair.
    """
    better, worse = _pair(record)
    if transcript.is_transcript(record.get(fields.first_present(record, PROMPT_COLUMNS) or "")):
        better, worse = (each.strip() if isinstance(each, str) else each for each in (better, worse))
    chosen, rejected = _answer(better, "chosen", tags), _answer(worse, "rejected", tags)
    prompt = _prompt(record, tags)
    if chosen[0]["role"] != "assistant":
        common = _common(chosen, rejected)
        _fits(prompt, common)
        prompt, chosen, rejected = (
            [*fields.read_system(record), *common],
            chosen[len(common) :],
            rejected[len(common) :],
        )
    elif not prompt:
        raise fields.missing_field_error(record, "prompt", "preference", PROMPT_COLUMNS)
    return content(prompt, tools=tool_calls.normalize_tools(record.get("tools")), chosen=chosen, rejected=rejected)


def columns_read(record: Record) -> frozenset[str]:
    """Return the columns that are read of a record."""
    answers = ("chosen", "rejected") if _named(record) else tuple(name for name in RANKED_COLUMNS if name in record)[:1]
    prompt = fields.first_present(record, PROMPT_COLUMNS)
    return frozenset((*answers, *filter(None, [prompt]), "input", "system", "history", "tools"))


def looks_like_preference(record: Record) -> bool:
    """Tell whether a record has two answers, in whatever form."""
    if record.get("chosen") is not None and record.get("rejected") is not None:
        return True
    return _ranked(record) is not None


def _named(record: Record) -> bool:
    return record.get("chosen") is not None or record.get("rejected") is not None


def _ranked(record: Record) -> list[Any] | None:
    for name in RANKED_COLUMNS:
        value = record.get(name)
        if isinstance(value, list) and len(value) > 1:
            return value
    return None


def _pair(record: Record) -> tuple[Any, Any]:
    ranked = _ranked(record)
    if ranked and not _named(record):
        return ranked[0], ranked[-1]
    for name in ("chosen", "rejected"):
        if record.get(name) is None:
            raise fields.missing_field_error(record, name, "preference")
    return record["chosen"], record["rejected"]


def _answer(value: Any, name: str, tags: Tags) -> list[Message]:
    """Read an answer: text, one turn, or turns."""
    if transcript.is_transcript(value):
        return transcript.parse_transcript(value)
    if isinstance(value, str):
        return [message("assistant", value)]
    if isinstance(value, dict):
        return chat.read_messages([value], name, tags)
    if not isinstance(value, list):
        raise fields.not_text_error(name, value)
    return chat.read_messages(value, name, tags)


def _prompt(record: Record, tags: Tags) -> list[Message]:
    """Read the prompt, if one is given by itself."""
    name = fields.first_present(record, PROMPT_COLUMNS)
    if name is None:
        return []
    if transcript.is_transcript(record[name]):
        return [*fields.read_system(record), *transcript.parse_prompt(record[name])]
    if isinstance(record[name], str):
        return fields.read_question(record, name, "preference")
    return [*fields.read_system(record), *chat.read_messages(record[name], name, tags)]


def _common(chosen: list[Message], rejected: list[Message]) -> list[Message]:
    """Return what two whole chats begin with; each keeps one turn at least."""
    shortest = min(len(chosen), len(rejected)) - 1
    same = next((i for i in range(shortest) if chosen[i] != rejected[i]), shortest)
    if same == 0:
        raise DataError(
            "chosen and rejected are whole chats that begin differently, so they answer no common prompt.",
            "chosen and rejected have no common prompt",
        )
    return chosen[:same]


def _fits(prompt: list[Message], common: list[Message]) -> None:
    """Check a prompt that is given a second time: its last question must be in the chats."""
    asked = [turn["content"].strip() for turn in prompt if turn["role"] == "user"]
    if asked and asked[-1] not in [turn["content"].strip() for turn in common]:
        raise DataError(
            f"the prompt {asked[-1]!r:.60} is not among the turns that chosen and rejected share.",
            "the prompt is not what chosen and rejected share",
        )


formats.register("preference")(Format(align_preference, looks_like_preference, columns_read))
