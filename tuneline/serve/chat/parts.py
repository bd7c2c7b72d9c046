"""Prompts and answers of chats in this process: the code that the server uses."""

from typing import Any

from tuneline.serve.answers.parser import AnswerParser
from tuneline.serve.answers.prompts import encode_chat
from tuneline.serve.chat.interface import Message
from tuneline.serve.deploy.interface import ServedVersion


def encode(
    version: ServedVersion, messages: list[Message], tools: list[dict[str, Any]], arguments: dict[str, Any]
) -> list[int]:
    """Return the ids of a prompt."""
    return encode_chat(version.tokenizer, messages, tools or None, arguments)


def make_parser(version: ServedVersion, ids: list[int], stop: list[str], tools: list[dict[str, Any]]) -> AnswerParser:
    """Return the parser of an answer."""
    return AnswerParser(version.tokenizer, ids, stop, bool(tools), tools=tools or None)
