"""Artifacts of the gate in MLflow runs, and manual promotion from these artifacts without new evaluation."""

import tempfile
from collections.abc import Iterable
from pathlib import Path

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from tuneline.config.sections.gate import GateConfig
from tuneline.errors import TrackingError
from tuneline.tracking import compare, evidence, gate, html_reports, integrity, model_card, promotion, registry, runs
from tuneline.tracking.decision import Decision
from tuneline.tracking.evidence import Check, Evidence
from tuneline.tracking.gate import Finding, Scores
from tuneline.tracking.registry import Version
from tuneline.tracking.training_rows import TrainingRows

CARD = "model_card.md"
EVIDENCE = "gate/evidence.json"
TRAINING_ROWS = "gate/training_rows.npz"
DECISION = "gate/decision"


def log_evidence(facts: Evidence) -> None:
    """Log the evidence for a later gate to the active run."""
    runs.log_text(EVIDENCE, facts.model_dump_json(indent=1))


def log_training_rows(rows: TrainingRows) -> None:
    """Log the hashes of the training rows to the active run."""
    folder, _, name = TRAINING_ROWS.partition("/")
    runs.log_file(folder, name, rows.save)


def log_decision(decision: Decision) -> None:
    """Log a decision to the active run as JSON, Markdown and HTML, and its sentence as a tag."""
    for kind, text in _documents(decision):
        runs.log_text(f"{DECISION}.{kind}", text)
    runs.set_tags({"tuneline.version": decision.version, "tuneline.decision": decision.sentence})


def log_card(text: str, version: Version | None) -> None:
    """Log a model card to the active run and, for a new version, set it as the description in the registry."""
    runs.log_text(CARD, text)
    if version:
        MlflowClient().update_model_version(version.name, version.version, model_card.shorten(text))


def load_card(version: Version) -> str:
    """Return the model card of a version.

    Raises:
        TrackingError: The run that produced it has no such file.
    """
    return _text(version, CARD, "Run its recipe again.")


def promote(name: str, version: str, config: GateConfig | None = None) -> Decision:
    """Compare a version with the base model and, if there is one, the champion, and promote it if it passes.

    The decision replaces that of the run that produced the version.

    Args:
        name: Registered model.
        version: Number or alias.
        config: The gate; default: that of the run that produced the version.

    Raises:
        NotFoundError: The version does not exist.
        RecipeError: A metric of the gate has no scores.
        TrackingError: The two were scored on different items or with different libraries, a run has no scores, or the
            files of the version are missing or changed.
    """
    candidate, champion = registry.find_version(name, version), registry.get_champion(name)
    integrity.check_stored(candidate)
    facts = load_evidence(candidate)
    config = config or facts.gate
    scores = compare.load_scores(compare.get_run(candidate.run_id))
    findings: list[Finding] = []
    if champion is None or champion.version != candidate.version:
        base = compare.load_scores(compare.get_run(candidate.run_id), "base")
        findings += gate.evaluate(scores, base, "the base model", config, facts.contaminated_items())
    checks = list[Check]()
    if champion and champion.version != candidate.version:
        _check_same_setting(candidate, facts, champion)
        both = scores, compare.load_scores(compare.get_run(champion.run_id))
        new_findings, checks = compare_with_champion(both, champion, facts, load_training_rows(candidate), config)
        findings += new_findings
    checks = [*evidence.check_preconditions(facts, config.preconditions), *checks]
    decision = promotion.decide(
        candidate, new=False, champion=champion, findings=findings, checks=checks, config=config
    )
    if findings:
        for kind, text in _documents(decision):
            MlflowClient().log_text(candidate.run_id, text, f"{DECISION}.{kind}")
    return decision


def _check_same_setting(candidate: Version, facts: Evidence, champion: Version) -> None:
    """Check that the scores of two runs have the same dtype, device and libraries."""
    try:
        settings, champion_settings = facts.scored_with, load_evidence(champion).scored_with
    except TrackingError:
        return
    if settings and champion_settings and settings != champion_settings:
        key = next(key for key in {**settings, **champion_settings} if settings.get(key) != champion_settings.get(key))
        raise TrackingError(
            f"Version {candidate.version} was scored with {key} {settings.get(key)}, and champion version "
            f"{champion.version} with {champion_settings.get(key)}, so their stored scores cannot be compared. "
            f"Run the recipe of version {candidate.version} again: it scores both models."
        )


def compare_with_champion(
    scores: tuple[Scores, Scores],
    champion: Version,
    facts: Evidence,
    rows: TrainingRows | None,
    config: GateConfig,
) -> tuple[list[Finding], list[Check]]:
    """Compare a new model with the champion on items that neither was trained on.

    Args:
        scores: Scores of the new model and of the champion, by metric and item.
        champion: The champion.
        facts: Evidence of the new model.
        rows: Training and held-out rows of the new model, if known.
        config: The gate.

    Returns:
        A finding per metric of the gate; if too few items are left, no finding and a failed check.
    """
    against, champion_rows = f"champion version {champion.version}", load_training_rows(champion)
    trained = rows.seen_by(champion_rows) | rows.seen_by(rows) if rows and champion_rows else None
    try:
        findings = gate.evaluate(
            *scores, against, config, facts.contaminated_items() | contaminated_items(champion), trained
        )
    except gate.TooFewItemsError as error:
        return [], [Check(name="clean_items", passed=False, sentence=f"compared with {against}: {error}")]
    return findings, []


def load_training_rows(version: Version) -> TrainingRows | None:
    """Load the training rows of a version; None if its run has none, as in older releases."""
    with tempfile.TemporaryDirectory() as scratch:
        try:
            return TrainingRows.load(Path(MlflowClient().download_artifacts(version.run_id, TRAINING_ROWS, scratch)))
        except (MlflowException, OSError):
            return None


def load_evidence(version: Version) -> Evidence:
    """Load the evidence of the run that produced a version.

    Raises:
        TrackingError: The run has no such file.
    """
    advice = "Run its recipe again, or promote it with --force --reason."
    return Evidence.model_validate_json(_text(version, EVIDENCE, advice))


def contaminated_items(version: Version) -> set[str]:
    """Return the contaminated items of a version, as far as its run recorded them."""
    try:
        return load_evidence(version).contaminated_items()
    except TrackingError:
        return set()


def _text(version: Version, name: str, advice: str) -> str:
    with tempfile.TemporaryDirectory() as scratch:
        try:
            path = MlflowClient().download_artifacts(version.run_id, name, scratch)
        except (MlflowException, OSError) as error:
            raise TrackingError(
                f"The run that produced {version.name} version {version.version} has no {name}: {error}. {advice}"
            ) from error
        return Path(path).read_text()


def _documents(decision: Decision) -> Iterable[tuple[str, str]]:
    return (
        ("json", decision.model_dump_json(indent=1)),
        ("md", decision.to_markdown()),
        ("html", html_reports.decision_page(decision)),
    )
