"""Write every chat template that trl ships, and our own, in Go's template language; print the table of docs/export.md.

    python -m benchmarks.ollama_templates [--write]

`exact`: all conversations of the proof gave the same tokens. `limited`: all but those with the texts that are named.
"""

import argparse
import tempfile
from collections import Counter
from pathlib import Path

from benchmarks import chat_templates
from tuneline.data.chat_template import selection
from tuneline.errors import TunelineError
from tuneline.export import proof

DOC = Path(__file__).parents[1] / "docs" / "export.md"
MARK = "<!-- table -->\n"
CHOICES: tuple[tuple[str, selection.TemplateArguments], ...] = (
    ("", {}),
    ("thinking off", {"enable_thinking": False, "thinking": False}),
    ("a date", {"date_string": "26 Jul 2024"}),
)
"""What is tried in turn: a name for the table, `template_arguments`."""


def verdict(text: str, folder: Path) -> tuple[str, str]:
    """Say what becomes of a template, and which texts are the limit or why there is none."""
    reason = ""
    for name, arguments in CHOICES:
        try:
            tokenizer = chat_templates.tokenizer_for(selection.prepend_arguments(text, arguments), folder)
            _, found = proof.translate_template(tokenizer)
        except TunelineError as error:
            reason = reason or chat_templates.short(str(error).split(": '")[0])
            continue
        with_ = f", with {name}" if name else ""
        return f"{'exact' if found.exact else 'limited'}{with_}", "; ".join(found.limits)
    return "none", reason


def section(folder: Path) -> str:
    """Return the table, and how many are of each kind."""
    lines, counts = ["| template | Modelfile | limitation or reason |", "|---|---|---|"], Counter[str]()
    for name, text in chat_templates.templates().items():
        kind, more = verdict(text, folder)
        counts[kind.split(",")[0]] += 1
        lines.append(f"| `{name}` | {kind} | {more.replace('|', '&#124;')} |")
    told = ", ".join(f"{counts[kind]} {kind}" for kind in ("exact", "limited", "none"))
    return "\n".join([*lines, "", f"Of {sum(counts.values())}: {told}."]) + "\n"


def main() -> None:
    """Print the table, or write it into the document."""
    from tests import tiny

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="replace the table in docs/export.md")
    with tempfile.TemporaryDirectory() as scratch:
        made = section(tiny.build_model(Path(scratch) / "model"))
    if not parser.parse_args().write:
        print(made)
        return
    head = DOC.read_text(encoding="utf-8").split(MARK)[0]
    DOC.write_text(f"{head}{MARK}{made}", encoding="utf-8")


if __name__ == "__main__":
    main()
