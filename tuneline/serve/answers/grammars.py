"""Grammars of requests: JSON answers (`response_format`) and forced tool calls (`tool_choice`).

A forced tool call has the syntax of the model's own chat template, with arguments that follow the function's schema.
Thoughts come first where the template has them. Grammars are those of llguidance: JSON schemas, or Lark with embedded
JSON schemas.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from tuneline.errors import did_you_mean
from tuneline.serve.answers import markup, parser
from tuneline.serve.answers.lark import Lark
from tuneline.serve.answers.markup_reader import Markup
from tuneline.serve.answers.messages import FUNCTION_NAME
from tuneline.serve.answers.tool_grammar import calls_rule
from tuneline.serve.engines import constraint
from tuneline.serve.engines.interface import Grammar

FORMATS = ("text", "json_object", "json_schema")
Tools = Sequence[Mapping[str, Any]]


class GrammarError(ValueError):
    """A request's `response_format`, `tools` or `tool_choice` cannot be honored."""


def grammar_for(
    response_format: Mapping[str, Any] | None,
    tools: Tools | None,
    tool_choice: str | Mapping[str, Any] | None,
    tokenizer: PreTrainedTokenizerBase,
    *,
    prompt_ids: Sequence[int] | None = None,
    parallel_tool_calls: bool = True,
) -> Grammar | None:
    """Return the grammar of a request; None if its answers are free.

    Args:
        response_format: `{"type": "text"}`, `{"type": "json_object"}`, or `{"type": "json_schema", ...}`.
        tools: Tools of the request.
        tool_choice: `none`, `auto`, `required`, or a function.
        tokenizer: The tokenizer, whose chat template has the syntax of tool calls.
        prompt_ids: Ids of the prompt, which may have opened a thinking block, or closed an empty one.
        parallel_tool_calls: Whether several calls are allowed with `required`.

    Raises:
        GrammarError: A value is not valid, or cannot be honored by this model.
    """
    schema = _schema(response_format)
    name = _forced_name(tools, tool_choice)
    is_forced = tool_choice == "required" or name is not None
    can_call = is_forced or (bool(tools) and tool_choice != "none")
    if can_call and parser.tool_format(tokenizer) is None:
        raise GrammarError(
            "This model's chat template writes no tool calls, or in a syntax that is not known, so tools are not "
            "supported. Send the request without tools."
        )
    if schema is None and not is_forced:
        return None
    tags = markup.find_markup(tokenizer)
    if schema is not None and not can_call and not tags.shows_thinking and not tags.header:
        kind = "json_object" if schema == {"type": "object"} else "json_schema"
        grammar = Grammar(kind, json.dumps(schema))  # type: ignore[arg-type]
    else:
        chosen = [tool for tool in tools or () if name is None or _function(tool).get("name") == name]
        several = parallel_tool_calls and name is None
        grammar = _lark(tags, tokenizer, prompt_ids, chosen if can_call else [], None if is_forced else schema, several)
    try:
        constraint.compile_grammar(grammar)
    except ValueError as error:
        what = "tools" if is_forced else "response_format"
        raise GrammarError(f"{what}: {' '.join(str(error).split())}") from None
    return grammar


def _lark(
    tags: Markup,
    tokenizer: PreTrainedTokenizerBase,
    prompt_ids: Sequence[int] | None,
    tools: Tools,
    schema: dict[str, Any] | None,
    several: bool,
) -> Grammar:
    lark = Lark(tokenizer)
    answers = []
    if tools and tags.tool_format:
        try:
            answers.append(calls_rule(lark, tags.tool_format, [_function(tool) for tool in tools], several=several))
        except ValueError as error:
            raise GrammarError(f"tools: {error}") from None
    if schema is not None:
        answers.append(lark.rule(f"{lark.literal(tags.header)} {lark.json(schema)}"))
    return Grammar("lark", lark.text(f"{_thoughts(lark, tags, tokenizer, prompt_ids)} ({' | '.join(answers)})"))


def _thoughts(lark: Lark, tags: Markup, tokenizer: PreTrainedTokenizerBase, prompt_ids: Sequence[int] | None) -> str:
    """Return the rule of the thinking block before the answer."""
    if not tags.shows_thinking:
        return ""
    end = parser.prompt_end(tokenizer, prompt_ids) if prompt_ids is not None else ""
    if end.endswith(tags.thinking_close):
        return ""
    thoughts = lark.rule(f"{lark.text_until(tags.thinking_close)} /[ \\n]{{0,4}}/")
    return thoughts if end.endswith(tags.thinking_open) else f"({lark.literal(tags.thinking_open)} {thoughts})?"


def _schema(response_format: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return the JSON schema of the answers, or None."""
    if response_format is None:
        return None
    kind = response_format.get("type")
    if kind == "text":
        return None
    if kind == "json_object":
        return {"type": "object"}
    if kind != "json_schema":
        hint = did_you_mean(kind, FORMATS) if isinstance(kind, str) else ""
        raise GrammarError(f"response_format.type must be one of {', '.join(FORMATS)}, got {kind!r:.60}.{hint}")
    given = response_format.get("json_schema")
    schema = given.get("schema") if isinstance(given, Mapping) else None
    if not isinstance(schema, dict):
        raise GrammarError(f"response_format.json_schema.schema must be a JSON schema, got {schema!r:.60}.")
    return schema


def _forced_name(tools: Tools | None, tool_choice: str | Mapping[str, Any] | None) -> str | None:
    """Return the name of the function that must be called, or None."""
    names = [str(_function(tool).get("name")) for tool in tools or ()]
    for name in names:
        if not FUNCTION_NAME.fullmatch(name):
            raise GrammarError(f"The name of a function must consist of letters, digits, _, - and ., got {name!r:.60}.")
    if tool_choice in (None, "none", "auto"):
        return None
    if not names:
        raise GrammarError(f"tool_choice is {tool_choice!r:.60}, and the request has no tools. Add them.")
    if tool_choice == "required":
        return None
    function = tool_choice.get("function") if isinstance(tool_choice, Mapping) else None
    forced = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(forced, str) or tool_choice.get("type", "function") != "function":  # type: ignore[union-attr]
        raise GrammarError(
            "tool_choice must be none, auto, required or "
            f'{{"type": "function", "function": {{"name": ...}}}}, got {tool_choice!r:.60}.'
        )
    if forced not in names:
        hint = did_you_mean(forced, names)
        raise GrammarError(f"tool_choice names {forced!r}, and the tools are {', '.join(names)}.{hint}")
    return forced


def _function(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    function = tool.get("function", tool)
    return function if isinstance(function, Mapping) else {}
