"""Exports a tiny model of each architecture to GGUF and verifies it with llama.cpp; prints the table of docs/export.md.

    python -m benchmarks.gguf_table [--write]

The numbers are mean KL divergences between transformers and llama.cpp in nats per token, for random weights.
"""

import argparse
import tempfile
from pathlib import Path

from tuneline.errors import TunelineError
from tuneline.export.gguf.architectures import architectures
from tuneline.export.gguf.quantize import Kind
from tuneline.export.gguf.write import write_gguf

DOC = Path(__file__).parents[1] / "docs" / "export.md"
START, END = "<!-- gguf -->\n", "<!-- end of gguf -->\n"
KINDS: tuple[Kind, ...] = ("f16", "q8_0")
"""4-bit types need rows of 256 numbers, which tiny models do not have."""


def check_architecture(name: str, folder: Path) -> str:
    """Return the row of an architecture."""
    from tests import gguf_models

    gguf_models.build_architecture(name, folder)
    cells, notes = [], ""
    for kind in KINDS:
        try:
            report = write_gguf(folder, folder / "model.gguf", kind)
        except TunelineError as error:
            cells.append(f"refused: {str(error)[:120]}")
            continue
        cells.append(f"{report.mean_kl:.0e}")
        if any("sliding window" in note for note in report.notes):
            notes = "context ends with the sliding window"
    return f"| `{name}` | {' | '.join(cells)} | {notes} |"


def render_table() -> str:
    """Return the table of all architectures."""
    lines = [f"| `model_type` | {' | '.join(KINDS)} | limit |", f"|---|{'---|' * (len(KINDS) + 1)}"]
    for name in architectures:
        with tempfile.TemporaryDirectory() as folder:
            lines.append(check_architecture(name, Path(folder) / "model"))
            print(lines[-1])
    return "\n".join(lines) + "\n"


def main() -> None:
    """Print the table, or write it into docs/export.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="replace the table in docs/export.md")
    writes, table = parser.parse_args().write, render_table()
    if not writes:
        return
    text = DOC.read_text(encoding="utf-8")
    head, tail = text.split(START)[0], text.split(END)[1]
    DOC.write_text(f"{head}{START}\n{table}\n{END}{tail}", encoding="utf-8")


if __name__ == "__main__":
    main()
