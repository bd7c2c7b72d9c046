"""Preference pairs: one prompt with a better and a worse answer, `chosen` and `rejected`.

The prompt is a text, the turns of a chat, or the common beginning of `chosen` and `rejected` if both hold the whole
chat, as turns or as a transcript of hh-rlhf.
If a list in `responses` or `output` ranks several answers, the first and the last are the pair.
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
        DataError: The prompt or the pair is missing.
    """
    better, worse = _read_pair(record)
    if transcript.is_transcript(record.get(fields.first_present(record, PROMPT_COLUMNS) or "")):
        better, worse = (answer.strip() if isinstance(answer, str) else answer for answer in (better, worse))
    chosen, rejected = _read_answer(better, "chosen", tags), _read_answer(worse, "rejected", tags)
    prompt = _read_prompt(record, tags)
    if chosen[0]["role"] != "assistant":
        common = _common_prompt(chosen, rejected)
        _check_prompt(prompt, common)
        prompt = [*fields.read_system(record), *common]
        chosen, rejected = chosen[len(common) :], rejected[len(common) :]
    elif not prompt:
        raise fields.missing_field_error(record, "prompt", "preference", PROMPT_COLUMNS)
    tools = tool_calls.normalize_tools(record.get("tools"))
    return content(prompt, tools=tools, chosen=chosen, rejected=rejected)


def columns_read(record: Record) -> frozenset[str]:
    """Return the columns of a record that the format reads."""
    answers: tuple[str, ...] = ("chosen", "rejected")
    if not _has_named_pair(record):
        answers = tuple(name for name in RANKED_COLUMNS if name in record)[:1]
    prompt = fields.first_present(record, PROMPT_COLUMNS)
    return frozenset((*answers, *filter(None, [prompt]), "input", "system", "history", "tools"))


def looks_like_preference(record: Record) -> bool:
    """Return whether a record has two answers, in any form."""
    if record.get("chosen") is not None and record.get("rejected") is not None:
        return True
    return _ranked_answers(record) is not None


def _has_named_pair(record: Record) -> bool:
    return record.get("chosen") is not None or record.get("rejected") is not None


def _ranked_answers(record: Record) -> list[Any] | None:
    for name in RANKED_COLUMNS:
        value = record.get(name)
        if isinstance(value, list) and len(value) > 1:
            return value
    return None


def _read_pair(record: Record) -> tuple[Any, Any]:
    ranked = _ranked_answers(record)
    if ranked and not _has_named_pair(record):
        return ranked[0], ranked[-1]
    for name in ("chosen", "rejected"):
        if record.get(name) is None:
            raise fields.missing_field_error(record, name, "preference")
    return record["chosen"], record["rejected"]


def _read_answer(value: Any, name: str, tags: Tags) -> list[Message]:
    """Read an answer: a text, one turn, or a list of turns."""
    if transcript.is_transcript(value):
        return transcript.parse_transcript(value)
    if isinstance(value, str):
        return [message("assistant", value)]
    if isinstance(value, dict):
        return chat.read_messages([value], name, tags)
    if not isinstance(value, list):
        raise fields.not_text_error(name, value)
    return chat.read_messages(value, name, tags)


def _read_prompt(record: Record, tags: Tags) -> list[Message]:
    """Read the prompt if it has its own column."""
    name = fields.first_present(record, PROMPT_COLUMNS)
    if name is None:
        return []
    if transcript.is_transcript(record[name]):
        return [*fields.read_system(record), *transcript.parse_prompt(record[name])]
    if isinstance(record[name], str):
        return fields.read_question(record, name, "preference")
    return [*fields.read_system(record), *chat.read_messages(record[name], name, tags)]


def _common_prompt(chosen: list[Message], rejected: list[Message]) -> list[Message]:
    """Return the common beginning of two whole chats; each chat keeps at least one turn."""
    shortest = min(len(chosen), len(rejected)) - 1
    num_common = next((i for i in range(shortest) if chosen[i] != rejected[i]), shortest)
    if num_common == 0:
        raise DataError(
            "chosen and rejected are whole chats that begin differently, so they have no common prompt.",
            "chosen and rejected have no common prompt",
        )
    return chosen[:num_common]


def _check_prompt(prompt: list[Message], common: list[Message]) -> None:
    """Check a prompt that also has its own column: its last question must be part of both chats."""
    questions = [turn["content"].strip() for turn in prompt if turn["role"] == "user"]
    if questions and questions[-1] not in [turn["content"].strip() for turn in common]:
        raise DataError(
            f"the prompt {questions[-1]!r:.60} is not among the turns that chosen and rejected share.",
            "the prompt differs from the common prompt of chosen and rejected",
        )


formats.register("preference")(Format(align_preference, looks_like_preference, columns_read))
