"""Input of a chat: lines from a terminal with history, or from a pipe."""

import sys
from pathlib import Path

PROMPT, CONTINUATION = "> ", "... "
HISTORY_FILE, HISTORY_LENGTH = "chat_history", 1000


class LineReader:
    """Reads prompts; a backslash at the end of a line continues the prompt on the next line."""

    def __init__(self, history: Path | None = None) -> None:
        """Read from standard input.

        Args:
            history: File with the lines of earlier chats, on a terminal; None keeps no history.
        """
        self._is_terminal = sys.stdin.isatty() and sys.stdout.isatty()
        self._history = history if self._is_terminal else None
        if self._is_terminal:
            _load_history(self._history)

    def read(self, prompt: str = PROMPT) -> str | None:
        """Return the next prompt; None at the end of the input."""
        lines: list[str] = []
        while (line := self._read_line(CONTINUATION if lines else prompt)) is not None:
            if not line.endswith("\\"):
                return "\n".join([*lines, line])
            lines.append(line[:-1])
        return "\n".join(lines) if lines else None

    def _read_line(self, prompt: str) -> str | None:
        if not self._is_terminal:
            line = sys.stdin.readline()
            return line.removesuffix("\n").removesuffix("\r") if line else None
        try:
            return input(prompt)
        except EOFError:
            return None

    def close(self) -> None:
        """Save the history."""
        if self._history:
            _save_history(self._history)


def history_file() -> Path | None:
    """Return the file of the history in the state root; None if there is no state root yet."""
    from tuneline import state

    return state.root() / HISTORY_FILE if state.root().is_dir() else None


def _load_history(path: Path | None) -> None:
    try:
        import readline
    except ImportError:  # Windows, and Pythons without it: input() still reads lines
        return
    readline.set_history_length(HISTORY_LENGTH)
    if path and path.is_file():
        readline.read_history_file(path)


def _save_history(path: Path) -> None:
    try:
        import readline
    except ImportError:
        return
    path.touch(mode=0o600)
    readline.write_history_file(path)
