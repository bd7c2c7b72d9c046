"""Evidence for the gate besides the scores: fidelity of the merge, template parity, mask coverage, contamination.

It is stored with the run, so that a manual promotion checks the same preconditions, or those of another gate.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict

from tuneline.config.sections.gate import GateConfig, PreconditionsConfig
from tuneline.data.corpus import Corpus
from tuneline.model import source
from tuneline.model.checkpoint import Checkpoint

CONTAMINATION_SPLIT = "contamination"
"""Split of a mixture with one row per item that a training example contains."""


class Check(BaseModel):
    """The result of one precondition, with its reason."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    passed: bool
    sentence: str


class Evidence(BaseModel):
    """Facts about a model and its training rows."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    gate: GateConfig
    """Gate of the recipe."""

    kind: str
    """Kind of the model: merged, full or adapter."""

    fidelity: dict[str, Any]
    """Measurements of the merge: `kl` (nats per token), `greedy_agreement`, `positions`."""

    max_kl: float
    """Limit of the KL divergence in the recipe, nats per token."""

    tokenizer_of_rows: str
    """Hash of the tokenizer and chat template of the training rows."""

    tokenizer_of_model: str
    """Hash of the tokenizer and chat template stored with the weights."""

    coverage: float | None
    """Share of training tokens with loss; None if training generates the answers."""

    contaminated: dict[str, list[str]]
    """Items found in the training rows, by evaluation set; `held_out` for validation examples."""

    scored_with: dict[str, str] = {}
    """dtype, device and libraries of the scores; empty for scores of an earlier release."""

    def contaminated_items(self) -> set[str]:
        """Return the contaminated items of all evaluation sets."""
        return {item for items in self.contaminated.values() for item in items}


SCORING_SETTINGS = ("dtype", "device", "libraries")
"""Keys of `Report.methods` that describe how the scores were computed."""


def collect(
    model: Checkpoint, mixture: Corpus, rows: Corpus, gate: GateConfig, max_kl: float, methods: Mapping[str, str]
) -> Evidence:
    """Collect the evidence from the artifacts of a run.

    Args:
        model: Output of `merge_adapter`.
        mixture: Output of `merge`.
        rows: Output of `tokenize_pack`.
        gate: Gate of the recipe.
        max_kl: Limit of the KL divergence in the recipe, nats per token.
        methods: `Report.methods`.
    """
    contaminated: dict[str, list[str]] = {}
    if CONTAMINATION_SPLIT in mixture.splits:
        columns = mixture.splits[CONTAMINATION_SPLIT].select_columns(["benchmark", "item"])
        for row in columns:
            contaminated.setdefault(row["benchmark"], []).append(row["item"])
    return Evidence(
        gate=gate,
        kind=model.kind,
        fidelity=model.facts,
        max_kl=max_kl,
        tokenizer_of_rows=rows.identity["tokenizer"],
        tokenizer_of_model=source.tokenizer_manifest(model.path).content_hash(),
        coverage=None if rows.identity.get("stage") == "prompt" else rows.counts["train"]["coverage"],
        contaminated=contaminated,
        scored_with={name: methods[name] for name in SCORING_SETTINGS if name in methods},
    )


def check_preconditions(evidence: Evidence, config: PreconditionsConfig) -> list[Check]:
    """Check each precondition."""
    checks = [_merge_fidelity(evidence, config)]
    if config.template_parity:
        checks.insert(0, _template_parity(evidence))
    if evidence.coverage is not None:
        enough = evidence.coverage >= config.min_coverage
        sentence = f"{evidence.coverage:.2%} of the training tokens carry loss; required: {config.min_coverage:.2%}"
        checks.append(Check(name="mask_coverage", passed=enough, sentence=sentence))
    return checks


def _template_parity(evidence: Evidence) -> Check:
    same = evidence.tokenizer_of_model == evidence.tokenizer_of_rows
    verb = "equal" if same else "differ from"
    return Check(
        name="template_parity",
        passed=same,
        sentence=f"tokenizer and chat template of the weights {verb} those of the training rows",
    )


def _merge_fidelity(evidence: Evidence, config: PreconditionsConfig) -> Check:
    name, facts = "merge_fidelity", evidence.fidelity
    if evidence.kind != "merged":
        why = (
            "all weights were trained"
            if evidence.kind == "full"
            else f"{facts.get('reason', 'an adapter is trained further')}"
        )
        return Check(name=name, passed=True, sentence=f"nothing was merged: {why}")
    if "kl" not in facts:
        return Check(name=name, passed=False, sentence="the merge was not measured, because there are no held-out rows")
    bound = config.max_kl if config.max_kl is not None else evidence.max_kl
    kl, agreement = facts["kl"], facts["greedy_agreement"]
    return Check(
        name=name,
        passed=kl <= bound and agreement >= config.min_greedy_agreement,
        sentence=(
            f"KL divergence between adapter and merged model: {kl:.1e} nats per token; allowed: {bound:.1e}; most "
            f"likely tokens agree at {agreement:.1%} of {facts['positions']} positions; required: "
            f"{config.min_greedy_agreement:.1%}"
        ),
    )
