"""The compatibility table as Markdown, for docs/support-matrix.md."""

from collections.abc import Iterable

from tuneline.config.validation.compatibility import Choice, table


def to_markdown() -> str:
    """Render the table: methods down, each other axis across, reasons below."""
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
    turned = len(values) > len(methods)
    down, across = (values, methods) if turned else (methods, values)
    lines = [f"| {axis if turned else 'method'} | " + " | ".join(f"`{value}`" for value in across) + " |"]
    lines.append("|---" * (len(across) + 1) + "|")
    for row in down:
        pairs = [(column, row) if turned else (row, column) for column in across]
        lines.append(f"| `{row}` | " + " | ".join(cells[pair] for pair in pairs) + " |")
    return "\n".join([*lines, "", *_meanings(values.items()), *_left_out(axis)])


def _left_out(axis: str) -> list[str]:
    reasons = table().left_out.get(axis, {})
    return ["", "Excluded:", "", *(f"- `{value}`: {reason}." for value, reason in reasons.items())] if reasons else []


def _cell(choice: Choice, reasons: dict[str, int]) -> str:
    if found := table().incompatibilities(choice):
        number = reasons.setdefault(
            f"{found[0].because[0].upper()}{found[0].because[1:]}. {found[0].instead}", len(reasons) + 1
        )
        return f"no ({number})"
    needs = table().needs(choice)
    return f"needs {needs}" if needs else "yes"


def _meanings(values: Iterable[tuple[str, str]]) -> list[str]:
    return ["; ".join(f"`{value}`: {meaning}" for value, meaning in values) + "."]
