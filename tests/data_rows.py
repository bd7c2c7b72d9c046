"""Rows of datasets in several formats, as texts of files, for the tests of `tuneline.data`."""

import json

from tests import tiny

ALPACA = tiny.alpaca_rows(40)
FIX_ROW = "Fix the row, or set align.bad_rows: drop."
"""End of the message about a bad row."""


def openai(*turns, **more):
    """Build a row of OpenAI's format from pairs of role and content."""
    return {"messages": [{"role": role, "content": content} for role, content in turns], **more}


def sharegpt(*turns, **more):
    """Build a row of the ShareGPT format from pairs of speaker and text."""
    return {"conversations": [{"from": role, "value": value} for role, value in turns], **more}


def alpaca(instruction, output, **more):
    """Build a row of the Alpaca format."""
    return {"instruction": instruction, "output": output, **more}


def lines(*rows):
    """Return rows as JSON Lines; texts are written unchanged."""
    return "".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows)


OPENAI = [openai(("user", f"q{i}"), ("assistant", f"a{i}")) for i in range(40)]
SHAREGPT = [sharegpt(("human", f"q{i}"), ("gpt", f"a{i}")) for i in range(40)]
ALPACA_LINES = lines(*ALPACA)
QUESTIONS = lines(*({"question": f"q{i}", "answer": f"a{i}"} for i in range(40)))
