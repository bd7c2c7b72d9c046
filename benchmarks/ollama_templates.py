"""Translates every chat template of trl and Tuneline to Go templates; prints the table of docs/export.md.

    python -m benchmarks.ollama_templates [--write]

`exact`: all conversations of the check give the same tokens. `limited`: all except those with the listed texts.
"""

import argparse
import tempfile
from collections import Counter
from pathlib import Path

from benchmarks import chat_templates
from tuneline.data.chat_template import selection
from tuneline.errors import TunelineError
from tuneline.export import template_comparison

DOC = Path(__file__).parents[1] / "docs" / "export.md"
MARK = "<!-- table -->\n"
CHOICES: tuple[tuple[str, selection.TemplateArguments], ...] = (
    ("", {}),
    ("thinking off", {"enable_thinking": False, "thinking": False}),
    ("a date", {"date_string": "26 Jul 2024"}),
)
"""Choices in the order in which they are tried: a name for the table, `template_arguments`."""


def check_template(text: str, folder: Path) -> tuple[str, str]:
    """Return the result for a template, and its limits or the reason why it has no translation."""
    reason = ""
    for name, arguments in CHOICES:
        try:
            tokenizer = chat_templates.tokenizer_for(selection.prepend_arguments(text, arguments), folder)
            _, result = template_comparison.translate_template(tokenizer)
        except TunelineError as error:
            reason = reason or chat_templates.shorten_reason(str(error).split(": '")[0])
            continue
        suffix = f", with {name}" if name else ""
        return f"{'exact' if result.exact else 'limited'}{suffix}", "; ".join(result.limits)
    return "none", reason


def render_section(folder: Path) -> str:
    """Return the table, and the number of templates per result."""
    lines, counts = ["| template | Modelfile | limitation or reason |", "|---|---|---|"], Counter[str]()
    for name, text in chat_templates.templates().items():
        kind, details = check_template(text, folder)
        counts[kind.split(",")[0]] += 1
        lines.append(f"| `{name}` | {kind} | {details.replace('|', '&#124;')} |")
    summary = ", ".join(f"{counts[kind]} {kind}" for kind in ("exact", "limited", "none"))
    return "\n".join([*lines, "", f"Of {sum(counts.values())}: {summary}."]) + "\n"


def main() -> None:
    """Print the table, or write it into docs/export.md."""
    from tests import tiny

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="replace the table in docs/export.md")
    with tempfile.TemporaryDirectory() as scratch:
        text = render_section(tiny.build_model(Path(scratch) / "model"))
    if not parser.parse_args().write:
        print(text)
        return
    head = DOC.read_text(encoding="utf-8").split(MARK)[0]
    DOC.write_text(f"{head}{MARK}{text}", encoding="utf-8")


if __name__ == "__main__":
    main()
