"""A decision as a small document: what became of a model, and in one sentence why; JSON, Markdown and HTML."""

from html import escape

from pydantic import BaseModel, ConfigDict

from tuneline.tracking.evidence import Check
from tuneline.tracking.gate import Finding

COLUMNS = ("metric", "role", "against", "test", "items", "theirs", "ours", "gain", "at least", "asked", "p", "verdict")
STYLE = (
    "body{font:14px system-ui;margin:2em;max-width:70em}td,th{border:1px solid #ccc;padding:4px 8px;text-align:left}"
    "table{border-collapse:collapse;margin-bottom:2em}.no{background:#fdd}.yes{background:#dfd}"
)
NOTE = (
    "Gains are means of differences item by item; `at least` is the lower end of their one-sided interval. `items` in "
    "brackets: how many would let a gain as large as this one pass in 8 of 10 tries, or an equal model past a guard. "
    "Points of a hundred, but for likelihoods (nats a token) and rewards."
)


class Decision(BaseModel):
    """What became of a model: registered or known, promoted or not, and why."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model_name: str
    version: str
    new: bool
    promoted: bool
    aliases: list[str]
    sentence: str
    findings: list[Finding] = []
    checks: list[Check] = []
    """Preconditions."""

    def table(self) -> list[dict[str, str]]:
        """Return one row a finding, by `COLUMNS`."""
        return [_row(finding) for finding in self.findings]

    def to_markdown(self) -> str:
        """Write the document that people read first."""
        lines = [f"# {self._title()}", "", self.sentence, ""]
        if self.findings:
            lines += ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
            lines += ["| " + " | ".join(row.values()) + " |" for row in self.table()]
            lines += ["", NOTE, ""]
        if trained := self._trained_on():
            lines += ["Training rows among the items:", "", *(f"- {each}" for each in trained), ""]
        if excluded := [finding for finding in self.findings if finding.all_items]:
            lines += ["Contaminated items decide nothing. With them:", ""]
            lines += [f"- {_with_all(finding)}" for finding in excluded] + [""]
        if self.checks:
            lines += ["Preconditions:", ""]
            lines += [f"- {each.name}: {'holds' if each.passed else 'FAILS'}, {each.sentence}" for each in self.checks]
            lines.append("")
        return "\n".join(lines)

    def to_html(self) -> str:
        """Write one page that needs nothing beside it."""
        head = "".join(f"<th>{name}" for name in COLUMNS)
        rows = "".join(
            f"<tr class={'yes' if finding.passed else 'no'}>"
            + "".join(f"<td>{escape(cell)}" for cell in _row(finding).values())
            for finding in self.findings
        )
        parts = [f"<p>{escape(self.sentence)}"]
        if rows:
            parts.append(f"<table><tr>{head}{rows}</table><p>{escape(NOTE)}")
        if trained := "".join(f"<li>{escape(each)}" for each in self._trained_on()):
            parts.append(f"<h2>Training rows among the items</h2><ul>{trained}</ul>")
        if excluded := "".join(f"<li>{escape(_with_all(each))}" for each in self.findings if each.all_items):
            parts.append(f"<h2>With contaminated items, which decide nothing</h2><ul>{excluded}</ul>")
        if self.checks:
            checks = "".join(
                f"<tr class={'yes' if each.passed else 'no'}><td>{escape(each.name)}<td>{escape(each.sentence)}"
                for each in self.checks
            )
            parts.append(f"<h2>Preconditions</h2><table>{checks}</table>")
        title = escape(self._title())
        return (
            f"<!doctype html><meta charset=utf-8><title>{title}</title><style>{STYLE}</style><h1>{title}</h1>"
            + "".join(parts)
        )

    def _trained_on(self) -> list[str]:
        """Say of each comparison which items were training rows of one of the two models."""
        said = ((finding, finding.trained_on()) for finding in self.findings)
        return [f"{finding.metric} against {finding.against}: {text}" for finding, text in said if text]

    def _title(self) -> str:
        return f"{self.model_name} version {self.version}"


def _row(finding: Finding) -> dict[str, str]:
    needed = f" ({finding.items_needed} needed)" if finding.items_needed else ""
    cells = (
        finding.metric,
        finding.role,
        finding.against,
        finding.test,
        f"{finding.num_items}{needed}",
        finding.show(finding.opponent),
        finding.show(finding.candidate),
        finding.show(finding.gain, signed=True),
        f"{finding.show(finding.low, signed=True)} at {round(100 * finding.level, 1):g}%",
        f"> {finding.show(finding.needed, signed=True)}",
        f"{finding.p:.2g}",
        "passed" if finding.passed else "not passed",
    )
    return dict(zip(COLUMNS, cells, strict=True))


def _with_all(finding: Finding) -> str:
    assert finding.all_items is not None
    values = (finding.all_items.candidate, finding.all_items.opponent)
    ours, theirs = (finding.show(value) for value in values)
    gain = finding.show(finding.all_items.gain, signed=True)
    return (
        f"{finding.metric} {ours} against {theirs} of {finding.against}: {gain} on all {finding.all_items.num_items} "
        f"items; {finding.num_excluded} were found in the training rows"
    )
