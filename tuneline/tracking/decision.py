"""The decision of the gate on a model, with the reason in one sentence, and its Markdown document."""

from pydantic import BaseModel, ConfigDict

from tuneline.tracking.evidence import Check
from tuneline.tracking.gate import Finding

COLUMNS = (
    "metric",
    "role",
    "against",
    "test",
    "items",
    "opponent",
    "candidate",
    "gain",
    "lower bound",
    "required",
    "p",
    "result",
)
NOTE = (
    "A gain is the mean of per-item differences; `lower bound` is the lower end of its one-sided interval. In "
    "parentheses after `items`: the number of items with which a gain of this size passes with a power of 80 %, or an "
    "equal model passes a guard. Percentage points, except log-likelihoods (nats per token) and rewards."
)


class Decision(BaseModel):
    """The decision on a model: newly registered or not, promoted or not, and why."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model_name: str
    version: str
    new: bool
    promoted: bool
    aliases: list[str]
    sentence: str
    findings: list[Finding] = []
    checks: list[Check] = []
    """Results of the preconditions."""

    def table(self) -> list[dict[str, str]]:
        """Return one row per finding, by `COLUMNS`."""
        return [_row(finding) for finding in self.findings]

    def to_markdown(self) -> str:
        """Return the decision as Markdown."""
        lines = [f"# {self.title()}", "", self.sentence, ""]
        if self.findings:
            lines += ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
            lines += ["| " + " | ".join(row.values()) + " |" for row in self.table()]
            lines += ["", NOTE, ""]
        if in_training := self.training_row_notes():
            lines += ["Items that are training rows:", "", *(f"- {note}" for note in in_training), ""]
        if excluded := self.contamination_notes():
            lines += [
                "Contaminated items are excluded. Results including them:",
                "",
                *(f"- {note}" for note in excluded),
                "",
            ]
        if self.checks:
            lines += ["Preconditions:", ""]
            lines += [
                f"- {check.name}: {'passed' if check.passed else 'FAILED'}, {check.sentence}" for check in self.checks
            ]
            lines.append("")
        return "\n".join(lines)

    def training_row_notes(self) -> list[str]:
        """Return, for each comparison, the items that were training rows of one of the two models."""
        texts = ((finding, finding.trained_on()) for finding in self.findings)
        return [f"{finding.metric} against {finding.against}: {text}" for finding, text in texts if text]

    def contamination_notes(self) -> list[str]:
        """Return, for each comparison that left out contaminated items, the result on all items."""
        return [_describe_all_items(finding) for finding in self.findings if finding.all_items]

    def title(self) -> str:
        """Return the model name and the version."""
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


def _describe_all_items(finding: Finding) -> str:
    assert finding.all_items is not None
    values = (finding.all_items.candidate, finding.all_items.opponent)
    candidate, opponent = (finding.show(value) for value in values)
    gain = finding.show(finding.all_items.gain, signed=True)
    return (
        f"{finding.metric} {candidate} against {opponent} of {finding.against}: {gain} on all "
        f"{finding.all_items.num_items} items; {finding.num_excluded} were found in the training rows"
    )
