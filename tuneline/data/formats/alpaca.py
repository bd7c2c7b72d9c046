"""Alpaca: `instruction`, optional `input`, `output`, optional `system` and `history` (Taori et al. 2023)."""

from tuneline.data.formats.base import Record, formats, text
from tuneline.data.schema import Message, message
from tuneline.errors import DataError


@formats.register("alpaca")
def align_alpaca(record: Record) -> list[Message]:
    """Join instruction and input by a line break; earlier rounds come from `history`, a list of pairs."""
    instruction, output = text(record, "instruction", "alpaca"), text(record, "output", "alpaca")
    prompt = "\n".join(part for part in (instruction, text(record, "input", "alpaca", default="")) if part)
    system = text(record, "system", "alpaca", default="")
    messages = [message("system", system)] if system else []
    for pair in record.get("history") or []:
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(turn, str) for turn in pair)):
            raise DataError(f"'history' must be a list of [question, answer] pairs, got {pair!r:.60}.")
        messages += [message("user", pair[0]), message("assistant", pair[1])]
    return [*messages, message("user", prompt), message("assistant", output)]
