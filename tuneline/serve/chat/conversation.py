"""A conversation: system message, tools and turns; undo, and rows in OpenAI's format for training."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tuneline import filesystem, limits
from tuneline.errors import DataError, RecipeError
from tuneline.serve.chat.interface import Answer, ChatToolCall, Message, format_tool_call

NO_TURNS = "The conversation is empty."


@dataclass
class Turn:
    """A message, and what the API's format has no place for."""

    message: Message
    reasoning: str = ""
    stopped: bool = False

    @property
    def role(self) -> str:
        """Role of the message."""
        return str(self.message["role"])


@dataclass
class Conversation:
    """The turns of a chat."""

    system: str = ""
    tools: list[dict[str, Any]] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)
    _num_calls: int = 0
    _saved: dict[Path, str] = field(default_factory=dict)

    def messages(self) -> list[Message]:
        """Return the messages of a request."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, *(turn.message for turn in self.turns)]

    def add_user(self, text: str) -> None:
        """Add a prompt. It replaces a prompt that was not answered."""
        if self.turns and self.turns[-1].role == "user":
            self.turns.pop()
        self.turns.append(Turn({"role": "user", "content": text}))

    def add_answer(self, answer: Answer) -> None:
        """Add an answer, unless it is empty; its prompt then stays for `/regenerate`."""
        if answer.is_empty:
            return
        message: Message = {"role": "assistant", "content": answer.content}
        if answer.tool_calls:
            message["tool_calls"] = [self._tool_call(call) for call in answer.tool_calls]
        self.turns.append(Turn(message, answer.reasoning, answer.stopped))

    def _tool_call(self, call: ChatToolCall) -> dict[str, Any]:
        self._num_calls += 1
        function = {"name": call.name, "arguments": call.arguments or "{}"}
        return {"id": call.id or f"call_{self._num_calls}", "type": "function", "function": function}

    def open_calls(self) -> list[dict[str, Any]]:
        """Return the tool calls of the last answer that have no result yet."""
        results: list[Message] = []
        for turn in reversed(self.turns):
            if turn.role != "tool":
                answered = {result["tool_call_id"] for result in results}
                return [call for call in turn.message.get("tool_calls", []) if call["id"] not in answered]
            results.append(turn.message)
        return []

    def add_result(self, call: dict[str, Any], text: str) -> None:
        """Add the result of a tool call."""
        self.turns.append(Turn({"role": "tool", "tool_call_id": call["id"], "content": text}))

    def undo(self) -> bool:
        """Remove the last prompt and everything after it; return whether there was one."""
        for i in range(len(self.turns) - 1, -1, -1):
            if self.turns[i].role == "user":
                del self.turns[i:]
                return True
        return False

    def remove_answer(self) -> bool:
        """Remove the last answer; return whether the conversation now ends with something to answer."""
        if self.turns and self.turns[-1].role == "assistant":
            self.turns.pop()
        return bool(self.turns)

    def reset(self) -> None:
        """Remove all turns; system message and tools stay."""
        self.turns.clear()
        self._saved.clear()

    def history(self) -> str:
        """Return the conversation as text."""
        lines = [f"system: {self.system}"] if self.system else []
        lines += [f"tools: {', '.join(tool_names(self.tools))}"] if self.tools else []
        for turn in self.turns:
            calls = [
                format_tool_call(ChatToolCall(call["function"]["name"], call["function"]["arguments"]))
                for call in turn.message.get("tool_calls", [])
            ]
            text = "\n".join(filter(None, [turn.message["content"], *calls]))
            lines.append(f"{turn.role}: {text}{' [stopped]' if turn.stopped else ''}")
        return "\n".join(lines) or NO_TURNS

    def row(self) -> dict[str, Any]:
        """Return the conversation as a training row in OpenAI's format, up to its last answer.

        Thoughts are part of the content, in `<think>` tags, as training rows contain them. A stopped answer has
        `train: false`.

        Raises:
            DataError: There is no complete answer.
        """
        turns = list(self.turns)
        while turns and (turns[-1].role != "assistant" or turns[-1].stopped):
            turns.pop()
        if not turns:
            raise DataError("The conversation has no complete answer, so there is nothing to save. Send a prompt.")
        messages = [{"role": "system", "content": self.system}] if self.system else []
        messages += [_row_message(turn) for turn in turns]
        return {"messages": messages, **({"tools": self.tools} if self.tools else {})}

    def save(self, path: Path) -> int:
        """Add the conversation to a JSONL file; saving it again replaces its row. Return the number of rows.

        Raises:
            DataError: There is no complete answer.
            RecipeError: The path is not a plain file.
        """
        line = json.dumps(self.row(), ensure_ascii=False)
        if path.exists() and not path.is_file():
            raise RecipeError(f"{path} is {limits.special_file_kind(path) or 'a folder'}, expected a file.")
        lines = [text for text in path.read_text(encoding="utf-8").split("\n") if text] if path.exists() else []
        if lines and lines[-1] == self._saved.get(path.resolve()):
            lines.pop()
        filesystem.write_atomic(path, "".join(f"{each}\n" for each in [*lines, line]))
        self._saved[path.resolve()] = line
        return len(lines) + 1


def _row_message(turn: Turn) -> Message:
    message = dict(turn.message)
    if turn.reasoning.strip():
        message["content"] = f"<think>\n{turn.reasoning.strip()}\n</think>\n\n{message['content']}"
    if turn.stopped:
        message["train"] = False
    return message


def tool_names(tools: list[dict[str, Any]]) -> list[str]:
    """Return the names of the functions."""
    return [str(tool["function"]["name"]) for tool in tools]


def read_tools(path: Path) -> list[dict[str, Any]]:
    """Read the JSON schemas of tools: a list, or one tool, with or without `type: function`.

    Raises:
        RecipeError: The file is missing, or does not contain tools.
    """
    from tuneline.data.align.formats import tool_calls  # imports datasets, which takes long

    if not path.is_file():
        raise RecipeError(f"tools: {limits.why_not_a_file(path)}. Give a JSON file with a list of functions.")
    try:
        text = tool_calls.normalize_tools(path.read_text(encoding="utf-8"))
    except (DataError, UnicodeDecodeError) as error:
        raise RecipeError(f"tools: {path}: {error} Give a JSON file with a list of functions.") from error
    if not text:
        raise RecipeError(f"tools: {path} contains no function. Give a JSON file with a list of functions.")
    tools: list[dict[str, Any]] = json.loads(text)
    return tools
