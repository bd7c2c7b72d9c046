"""Reads thoughts, content and tool calls from the text of an answer while it arrives.

The tags are those of the chat template. Text that could become part of a tag is held back; a tool call is returned
when it is complete, and one that is malformed stays content. White space around thoughts and tool calls is dropped;
an answer without them is unchanged.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from tuneline.serve.answers.parts import ToolCall
from tuneline.serve.answers.text_search import find_first, partial_match_length
from tuneline.serve.answers.tool_format import IncompleteError, MalformedError, Schemas, ToolFormat

State = Literal["start", "reasoning", "content", "tool"]


@dataclass(frozen=True)
class Markup:
    """Tags in the answers of a chat template."""

    thinking_open: str = ""
    thinking_close: str = ""
    header: str = ""
    """Text before an answer without thoughts."""

    tool_format: ToolFormat | None = None
    shows_thinking: bool = False
    """Whether the template itself has thinking tags. Other models may write `<think>` as well, if trained on it."""

    def texts(self) -> Iterator[str]:
        """Yield all texts of tags."""
        yield from (self.thinking_open, self.thinking_close, self.header)
        if self.tool_format:
            tools = self.tool_format
            yield from (tools.open, tools.close, tools.next_open, tools.outer_close, tools.name_end)
            yield from (tools.quote, tools.parameter_open, tools.parameter_middle, tools.parameter_close)


class Part(NamedTuple):
    """A part of an answer."""

    kind: Literal["content", "reasoning", "tool_calls"]
    text: str = ""
    tool_calls: tuple[ToolCall, ...] = ()


class MarkupReader:
    """Splits the text of one answer into parts."""

    def __init__(
        self,
        markup: Markup,
        *,
        parse_tools: bool,
        is_thinking: bool = False,
        schemas: Schemas | None = None,
    ) -> None:
        """Create a reader.

        Args:
            markup: Tags of the template.
            parse_tools: Whether tool calls are parsed; otherwise they are content.
            is_thinking: Whether the prompt opened a thinking block.
            schemas: Schemas of the functions by name.
        """
        self._markup = markup
        self._tools = markup.tool_format if parse_tools else None
        self._schemas: Mapping[str, dict[str, Any]] = schemas or {}
        self._state: State = "reasoning" if is_thinking else "start"
        self._buffer = ""
        self._searched = 0
        """Length of the tool call in which the closing text was searched."""

        self._trims = is_thinking
        """Whether white space before the next text of this part is dropped."""

        self._after_call = False
        self._can_think = bool(markup.thinking_open) and not is_thinking

    def feed(self, text: str) -> list[Part]:
        """Return the parts that are certain after this text."""
        self._buffer += text
        return list(self._read(is_end=False)) if text else []

    def flush(self) -> list[Part]:
        """Return the remaining parts at the end of the answer."""
        return list(self._read(is_end=True))

    def _read(self, *, is_end: bool) -> Iterator[Part]:
        """Read until no part is certain."""
        steps = {"start": self._start, "reasoning": self._reasoning, "content": self._content, "tool": self._tool}
        while True:
            state, length = self._state, len(self._buffer)
            yield from steps[state](is_end)
            if state == self._state and length == len(self._buffer):
                return

    def _part(self, kind: Literal["content", "reasoning"], text: str) -> list[Part]:
        if self._trims:
            text = text.lstrip()
        if not text:
            return []
        self._trims = self._after_call = False
        return [Part(kind, text)]

    def _start(self, is_end: bool) -> list[Part]:
        """At the start of the answer, or of the text after thoughts: a tag may follow."""
        heads = [self._markup.header] if self._markup.header else []
        heads += [self._markup.thinking_open] if self._can_think else []
        is_bare = self._tools is not None and not self._tools.triggers
        text = self._buffer.lstrip()
        if not is_end and (any(head.startswith(text) for head in heads) or (is_bare and not text)):
            return []  # white space, or the start of a tag
        head = next((head for head in heads if text.startswith(head)), "")
        if head:
            self._buffer, self._trims = text[len(head) :], True
            self._state = "reasoning" if head == self._markup.thinking_open else "content"
            self._can_think = False
        elif is_bare and text.startswith(("{", "[")):
            self._state, self._searched = "tool", 0
        else:
            self._state = "content"
        return []

    def _reasoning(self, is_end: bool) -> list[Part]:
        thoughts, tag, rest = self._buffer.partition(self._markup.thinking_close)
        if tag or is_end:
            self._buffer, self._state = rest, "start" if tag else "content"
            parts = self._part("reasoning", thoughts.rstrip())
            self._trims = True
            return parts
        length = len(thoughts) - partial_match_length(thoughts, [self._markup.thinking_close])
        length = len(thoughts[:length].rstrip())
        self._buffer = thoughts[length:]
        return self._part("reasoning", thoughts[:length])

    def _content(self, is_end: bool) -> list[Part]:
        if self._tools is None or not self._tools.triggers:
            text, self._buffer = self._buffer, ""
            return self._part("content", text)
        if self._after_call and not self._skip_outer_close(is_end):
            return []
        text = self._buffer
        match = find_first(text, self._tools.triggers)
        length = match[0] if match else len(text)
        if not match and not is_end:
            length -= partial_match_length(text, self._tools.triggers)
        if match or not is_end:
            length = len(text[:length].rstrip())  # white space before a tool call is dropped
        if match:
            self._state, self._searched = "tool", 0
        self._buffer = text[length:]
        return self._part("content", text[:length])

    def _skip_outer_close(self, is_end: bool) -> bool:
        """Drop white space, and the text after the last call; returns whether it is certain what follows."""
        outer = self._tools.outer_close.strip() if self._tools else ""
        rest = self._buffer.lstrip()
        if outer and rest.startswith(outer):
            rest = rest[len(outer) :].lstrip()
        elif not is_end and outer.startswith(rest):
            return False
        self._buffer = rest
        return True

    def _tool(self, is_end: bool) -> list[Part]:
        tools, text = self._tools, self._buffer
        assert tools is not None
        if not is_end:
            from_position = max(self._searched - len(tools.closing), 0)
            self._searched = len(text)
            if not tools.closing or tools.closing not in text[from_position:]:
                return []
        try:
            calls, length = tools.parse(text, self._schemas, is_end=is_end)
        except IncompleteError:
            if not is_end:
                return []
        except MalformedError:
            pass
        else:
            self._buffer, self._state = text[length:], "content"
            self._trims = self._after_call = True
            return [Part("tool_calls", tool_calls=tuple(calls))]
        num_white = len(text) - len(text.lstrip())
        word = next((word for word in tools.triggers if text.startswith(word, num_white)), "")
        self._state, self._buffer = "content", text[num_white + len(word) :] if word else text
        if not word:
            self._tools = None  # the start of the answer was not a call
            return []
        return self._part("content", text[: num_white + len(word)])
