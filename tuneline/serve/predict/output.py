"""The output file of a prediction: JSONL in the order of the input, which an interrupted prediction resumes.

The settings are in `out.meta.json` next to `out.jsonl`. Each line has a key: the digest of its row and the settings.
Lines are only appended; a half-written last line is cut off on the next start. Other settings, or rows that changed,
are refused, because the file would mix answers that cannot be compared.
"""

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from filelock import Timeout

from tuneline import filesystem, limits, state
from tuneline.data.align.prompts import PromptRow
from tuneline.errors import RecipeError
from tuneline.identity import digest
from tuneline.serve.predict.job import Prediction

FORMAT_VERSION = 1
KEY_LENGTH = 16

Line = dict[str, Any]


class OutputFile:
    """Answers of one prediction."""

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        """Describe the file.

        Args:
            path: The file; it may exist.
            settings: What decides the answers, besides the rows.
        """
        self.path, self.settings = path, settings
        self._settings_digest = digest(settings)

    @property
    def meta_path(self) -> Path:
        """File of the settings."""
        return self.path.with_suffix(".meta.json")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the file while the block runs.

        Raises:
            RecipeError: Another process writes it.
        """
        try:
            with state.lock(f"predict-{digest(str(self.path.resolve()))[:KEY_LENGTH]}", timeout_seconds=0):
                yield
        except Timeout as error:
            raise RecipeError(
                f"Another process writes {self.path}. Wait until it has finished, or choose another --output."
            ) from error

    def check(self, *, restart: bool = False) -> None:
        """Check that the file can be written or resumed, before the model is loaded.

        Args:
            restart: Existing answers will be deleted.

        Raises:
            RecipeError: The file has other settings, or is not the output of a prediction.
        """
        if self.path.exists() and not self.path.is_file():
            raise RecipeError(f"{self.path} is {limits.special_file_kind(self.path) or 'a folder'}, expected a file.")
        if self.path.exists() and not restart:
            self._check_settings()

    def start(self, rows: Sequence[PromptRow], *, restart: bool = False) -> list[Line]:
        """Create the file, or prepare it for appending; return the lines that are finished.

        Args:
            rows: The rows of the prediction in order.
            restart: Delete existing answers.

        Raises:
            RecipeError: The file has other settings or other rows, or is not the output of a prediction.
        """
        self.check(restart=restart)
        if restart:
            self.path.unlink(missing_ok=True)
            self.meta_path.unlink(missing_ok=True)
        if not self.path.exists():
            meta = {"version": FORMAT_VERSION, "settings": self.settings}
            filesystem.write_atomic(self.meta_path, json.dumps(meta, indent=1, ensure_ascii=False) + "\n")
            self.path.touch()
            return []
        _cut_off_half_line(self.path)
        lines = list(self.read())
        self._check_rows(lines, rows)
        return lines

    def read(self) -> Iterator[Line]:
        """Yield the lines.

        Raises:
            RecipeError: A line is damaged.
        """
        with self.path.open(encoding="utf-8", newline="\n") as file:
            for number, text in enumerate(file, start=1):
                try:
                    line = json.loads(text)
                    if not isinstance(line, dict) or "key" not in line or "row" not in line:
                        raise ValueError("not a line of a prediction")
                except ValueError as error:
                    raise self._refusal(f"line {number} is damaged ({error})") from error
                yield line

    def append(self, pairs: Iterable[tuple[PromptRow, Prediction]]) -> None:
        """Append answers, all with one write, and flush them to the disk."""
        texts = [json.dumps(self.line(row, prediction), ensure_ascii=False) for row, prediction in pairs]
        with self.path.open("ab", buffering=0) as file:
            file.write("".join(f"{text}\n" for text in texts).encode("utf-8", errors="replace"))
            os.fsync(file.fileno())

    def line(self, row: PromptRow, prediction: Prediction) -> Line:
        """Return the line of a row."""
        prompt = {"text": row.text} if row.text else {"messages": [_plain(message) for message in row.messages]}
        optional = {"reasoning": prediction.reasoning, "tool_calls": list(prediction.tool_calls)}
        return {
            "id": row.id,
            "row": row.place,
            **prompt,
            **({"tools": json.loads(row.tools)} if row.tools else {}),
            "answer": prediction.answer,
            **{name: value for name, value in optional.items() if value},
            "reference": row.reference,
            "finish_reason": prediction.finish_reason,
            "tokens": prediction.tokens,
            "model": prediction.model,
            "key": self.key(row),
        }

    def key(self, row: PromptRow) -> str:
        """Return the digest of a row and the settings."""
        return digest([asdict(row), self._settings_digest])[:KEY_LENGTH]

    def _check_settings(self) -> None:
        try:
            stored = json.loads(self.meta_path.read_text(encoding="utf-8"))["settings"]
        except FileNotFoundError:
            raise RecipeError(
                f"{self.path} exists and is not the output of a prediction ({self.meta_path.name} is missing). Choose "
                "another --output, or pass --restart to delete it."
            ) from None
        except (ValueError, KeyError, TypeError) as error:
            raise self._refusal(f"{self.meta_path.name} is damaged ({error})") from error
        names = sorted(stored.keys() | self.settings.keys())
        differences = [
            f"{name} is {self.settings.get(name)!r}, but was {stored.get(name)!r}"
            for name in names
            if stored.get(name) != self.settings.get(name)
        ]
        if differences:
            raise self._refusal(f"its answers have other settings: {'; '.join(differences)}")

    def _check_rows(self, lines: list[Line], rows: Sequence[PromptRow]) -> None:
        """Check that the lines belong to rows in order. Rows without a line were refused by the server."""
        places = {row.place: number for number, row in enumerate(rows)}
        last = -1
        for line in lines:
            number = places.get(line["row"], -1)
            if number <= last:
                raise self._refusal(f"its row {line['row']} is not in the input, or in another order")
            if line["key"] != self.key(rows[number]):
                raise self._refusal(f"row {line['row']} of the input has changed")
            last = number

    def _refusal(self, reason: str) -> RecipeError:
        return RecipeError(
            f"{self.path} cannot be resumed: {reason}. Choose another --output, or pass --restart to delete its "
            "answers."
        )


def _plain(message: Any) -> dict[str, Any]:
    """Return a message in OpenAI's format, without absent keys."""
    plain = {"role": message["role"], "content": message["content"]}
    return plain | ({"tool_calls": json.loads(message["tool_calls"])} if message["tool_calls"] else {})


def _cut_off_half_line(path: Path) -> None:
    """Cut off a last line without a line break, which a killed process left."""
    with path.open("rb+") as file:
        size = file.seek(0, os.SEEK_END)
        end, block = size, 1 << 16
        while end:
            start = max(0, end - block)
            file.seek(start)
            position = file.read(end - start).rfind(b"\n")
            if position >= 0:
                end = start + position + 1
                break
            end = start
        if end < size:
            file.truncate(end)
