"""Render the compatibility table as Markdown for docs/support-matrix.md."""

from collections.abc import Iterable

from tuneline.config.validation.compatibility import Choice, table


def to_markdown() -> str:
    """Return the table as Markdown: one grid per axis with a row per method, and numbered reasons below."""
    reasons: dict[str, int] = {}
    parts = [
        f"## {axis.replace('_', ' ').capitalize()}\n\n{_grid(axis, reasons)}"
        for axis in table().axes
        if axis != "method"
    ]
    notes = "\n".join(f"{number}. {reason}" for reason, number in reasons.items())
    return "\n\n".join([*parts, f"## Reasons\n\n{notes}"]) + "\n"


def _grid(axis: str, reasons: dict[str, int]) -> str:
    values, methods = table().axes[axis], table().axes["method"]
    cells = {(choice["method"], choice[axis]): _cell(choice, reasons) for choice in table().pairs(axis)}
    transposed = len(values) > len(methods)
    row_names, column_names = (values, methods) if transposed else (methods, values)
    lines = [f"| {axis if transposed else 'method'} | " + " | ".join(f"`{name}`" for name in column_names) + " |"]
    lines.append("|---" * (len(column_names) + 1) + "|")
    for row in row_names:
        pairs = [(column, row) if transposed else (row, column) for column in column_names]
        lines.append(f"| `{row}` | " + " | ".join(cells[pair] for pair in pairs) + " |")
    return "\n".join([*lines, "", *_descriptions(values.items()), *_unsupported(axis)])


def _unsupported(axis: str) -> list[str]:
    reasons = table().unsupported.get(axis, {})
    return ["", "Excluded:", "", *(f"- `{value}`: {reason}." for value, reason in reasons.items())] if reasons else []


def _cell(choice: Choice, reasons: dict[str, int]) -> str:
    if incompatibilities := table().incompatibilities(choice):
        rule = incompatibilities[0]
        number = reasons.setdefault(f"{rule.reason[0].upper()}{rule.reason[1:]}. {rule.fix}", len(reasons) + 1)
        return f"no ({number})"
    needs = table().needs(choice)
    return f"needs {needs}" if needs else "yes"


def _descriptions(values: Iterable[tuple[str, str]]) -> list[str]:
    return ["; ".join(f"`{value}`: {description}" for value, description in values) + "."]
