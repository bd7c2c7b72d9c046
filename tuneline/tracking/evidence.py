"""What a gate must know beside the scores: is the model what was trained, and which items had it seen?

It is kept with the run, so that a promotion by hand asks the same questions, or those of another gate.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict

from tuneline.config.sections.gate import GateConfig, PreconditionsConfig
from tuneline.data.corpus import Corpus
from tuneline.model import source
from tuneline.model.checkpoint import Checkpoint

CONTAMINATION_SPLIT = "contamination"
"""Split of a mixture with a row for each item that a training example holds."""


class Check(BaseModel):
    """One precondition, and why it holds or does not."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    passed: bool
    sentence: str


class Evidence(BaseModel):
    """Facts of a model and of the rows that it was trained on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    gate: GateConfig
    """The gate of its recipe."""

    kind: str
    """Of the model: merged, full or adapter."""

    fidelity: dict[str, Any]
    """What the merge measured: `kl` (nats a token), `greedy_agreement`, `positions`."""

    max_kl: float
    """Bound of the recipe's merge."""

    tokenizer_of_rows: str
    """Hash of tokenizer and template that the training rows were made with."""

    tokenizer_of_model: str
    """Hash of those beside the weights."""

    coverage: float | None
    """Share of training tokens that carry loss; None where training makes its own answers."""

    contaminated: dict[str, list[str]]
    """Items found in the training rows, by evaluation set; of held-out examples, `held_out`."""

    scored_with: dict[str, str] = {}
    """dtype, device and libraries of its scores; empty where an earlier release made them."""

    def contaminated_items(self) -> set[str]:
        """Return the contaminated items of all evaluation sets."""
        return {item for items in self.contaminated.values() for item in items}


SCORING_SETTINGS = ("dtype", "device", "libraries")
"""Methods of a report that say under what its scores were made."""


def collect(
    model: Checkpoint, mixture: Corpus, rows: Corpus, gate: GateConfig, max_kl: float, methods: Mapping[str, str]
) -> Evidence:
    """Read what the artifacts of a run say.

    Args:
        model: What `merge_adapter` made.
        mixture: What `merge` made.
        rows: What `tokenize_pack` made.
        gate: The recipe's gate.
        max_kl: The recipe's bound of a merge, nats a token.
        methods: Of the report.
    """
    found: dict[str, list[str]] = {}
    if CONTAMINATION_SPLIT in mixture.splits:
        columns = mixture.splits[CONTAMINATION_SPLIT].select_columns(["benchmark", "item"])
        for row in columns:
            found.setdefault(row["benchmark"], []).append(row["item"])
    return Evidence(
        gate=gate,
        kind=model.kind,
        fidelity=model.facts,
        max_kl=max_kl,
        tokenizer_of_rows=rows.identity["tokenizer"],
        tokenizer_of_model=source.tokenizer_manifest(model.path).content_hash(),
        coverage=None if rows.identity.get("stage") == "prompt" else rows.counts["train"]["coverage"],
        contaminated=found,
        scored_with={name: methods[name] for name in SCORING_SETTINGS if name in methods},
    )


def check_preconditions(evidence: Evidence, asked: PreconditionsConfig) -> list[Check]:
    """Say of each precondition whether it holds."""
    checks = [_merge_fidelity(evidence, asked)]
    if asked.template_parity:
        checks.insert(0, _template_parity(evidence))
    if evidence.coverage is not None:
        enough = evidence.coverage >= asked.min_coverage
        told = f"{evidence.coverage:.2%} of the training tokens carry loss, {asked.min_coverage:.2%} asked for"
        checks.append(Check(name="mask_coverage", passed=enough, sentence=told))
    return checks


def _template_parity(evidence: Evidence) -> Check:
    same = evidence.tokenizer_of_model == evidence.tokenizer_of_rows
    words = "are those" if same else "are not those"
    return Check(
        name="template_parity",
        passed=same,
        sentence=f"tokenizer and chat template beside the weights {words} that the training rows were made with",
    )


def _merge_fidelity(evidence: Evidence, asked: PreconditionsConfig) -> Check:
    name, facts = "merge_fidelity", evidence.fidelity
    if evidence.kind != "merged":
        why = "all weights were trained" if evidence.kind == "full" else f"{facts.get('reason', 'an adapter goes on')}"
        return Check(name=name, passed=True, sentence=f"nothing was merged: {why}")
    if "kl" not in facts:
        return Check(name=name, passed=False, sentence="no held-out row was there to measure the merge on")
    bound = asked.max_kl if asked.max_kl is not None else evidence.max_kl
    kl, agreement = facts["kl"], facts["greedy_agreement"]
    return Check(
        name=name,
        passed=kl <= bound and agreement >= asked.min_greedy_agreement,
        sentence=(
            f"the merged model strays from the adapter's by {kl:.1e} nats a token, at most {bound:.1e} asked for, and "
            f"its likeliest tokens agree at {agreement:.1%} of {facts['positions']} positions, "
            f"{asked.min_greedy_agreement:.1%} asked for"
        ),
    )
