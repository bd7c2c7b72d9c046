"""Search in text that arrives piece by piece."""

from collections.abc import Sequence


def partial_match_length(text: str, words: Sequence[str]) -> int:
    """Return the length of the longest end of a text that one of the words could continue."""
    longest = max((len(word) for word in words), default=1) - 1
    for length in range(min(longest, len(text)), 0, -1):
        end = text[-length:]
        if any(word.startswith(end) for word in words):
            return length
    return 0


def find_first(text: str, words: Sequence[str]) -> tuple[int, str] | None:
    """Return the position and the word of the first occurrence of any word; of several at one place, the longest."""
    matches = [(position, -len(word), word) for word in words if (position := text.find(word)) >= 0]
    if not matches:
        return None
    position, _, word = min(matches)
    return position, word


class StopStrings:
    """Cuts a text before the first stop string that is completed; never emits a part of one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._held = ""
        self.is_stopped = False

    def feed(self, text: str) -> str:
        """Return the text that cannot be part of a stop string."""
        if self.is_stopped or not self._stops:
            return "" if self.is_stopped else text
        text = self._held + text
        ends = [(position + len(stop), position) for stop in self._stops if (position := text.find(stop)) >= 0]
        if ends:
            self.is_stopped, self._held = True, ""
            return text[: min(ends)[1]]
        length = partial_match_length(text, self._stops)
        self._held = text[len(text) - length :]
        return text[: len(text) - length]

    def flush(self) -> str:
        """Return the text that was held back, at the end of the answer."""
        text, self._held = self._held, ""
        return text
