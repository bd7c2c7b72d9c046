"""What a gate reads and leaves beside an MLflow run, and promotion by hand on it: nothing is computed anew."""

import tempfile
from collections.abc import Iterable
from pathlib import Path

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from tuneline.config.sections.gate import GateConfig
from tuneline.errors import TrackingError
from tuneline.tracking import compare, evidence, gate, integrity, model_card, promotion, registry, runs
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
    """Keep beside the active run what a later gate must know."""
    runs.log_text(EVIDENCE, facts.model_dump_json(indent=1))


def log_training_rows(rows: TrainingRows) -> None:
    """Keep beside the active run which examples its model was trained on."""
    folder, _, name = TRAINING_ROWS.partition("/")
    runs.log_file(folder, name, rows.save)


def log_decision(decision: Decision) -> None:
    """Keep a decision beside the active run, as JSON, Markdown and HTML, and its sentence as a tag."""
    for kind, text in _documents(decision):
        runs.log_text(f"{DECISION}.{kind}", text)
    runs.set_tags({"tuneline.version": decision.version, "tuneline.decision": decision.sentence})


def log_card(text: str, version: Version | None) -> None:
    """Keep a model card beside the active run and, of a version that is new, as its description in the registry."""
    runs.log_text(CARD, text)
    if version:
        MlflowClient().update_model_version(version.name, version.version, model_card.shorten(text))


def load_card(version: Version) -> str:
    """Return the model card of a version.

    Raises:
        TrackingError: The run that made it keeps none.
    """
    return _text(version, CARD, "Run its recipe again.")


def promote(name: str, version: str, config: GateConfig | None = None) -> Decision:
    """Judge a version against the base model and, where there is one, the champion.

    The decision is kept beside the run that made the version, and takes the place of that run's own.

    Args:
        name: Registered model.
        version: Number or alias.
        config: The gate; default: that of the run which made the version.

    Raises:
        NotFoundError: There is no such version.
        RecipeError: The gate asks for a metric that a report lacks.
        TrackingError: The two were scored on other items or under other libraries, a run keeps no scores, or the
            version's files are not those that were registered.
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
        theirs = compare.load_scores(compare.get_run(champion.run_id))
        more, checks = compare_with_champion((scores, theirs), champion, facts, load_training_rows(candidate), config)
        findings += more
    checks = [*evidence.check_preconditions(facts, config.preconditions), *checks]
    decision = promotion.decide(
        candidate, new=False, champion=champion, findings=findings, checks=checks, config=config
    )
    if findings:
        for kind, text in _documents(decision):
            MlflowClient().log_text(candidate.run_id, text, f"{DECISION}.{kind}")
    return decision


def _check_same_setting(candidate: Version, facts: Evidence, champion: Version) -> None:
    """Check that the scores of two runs were made in one type, on one kind of device, by the same libraries."""
    try:
        mine, theirs = facts.scored_with, load_evidence(champion).scored_with
    except TrackingError:
        return
    if mine and theirs and mine != theirs:
        key = next(key for key in {**mine, **theirs} if mine.get(key) != theirs.get(key))
        raise TrackingError(
            f"Version {candidate.version} was scored with {key} {mine.get(key)}, and champion version "
            f"{champion.version} with {theirs.get(key)}, so their stored scores cannot be compared. Run the recipe of "
            f"version {candidate.version} again: it scores both here."
        )


def compare_with_champion(
    scores: tuple[Scores, Scores],
    champion: Version,
    facts: Evidence,
    rows: TrainingRows | None,
    config: GateConfig,
) -> tuple[list[Finding], list[Check]]:
    """Compare a new model with the champion on the items that neither was trained on.

    Args:
        scores: Of the new model and of the champion, by metric and item.
        champion: The champion.
        facts: Of the new model.
        rows: What the new model was trained on, and what it held out, where that is known.
        config: The gate.

    Returns:
        A finding for each metric that the gate asks for. Where too few items are left, none, and a check that fails.
    """
    against, theirs = f"champion version {champion.version}", load_training_rows(champion)
    trained = rows.seen_by(theirs) | rows.seen_by(rows) if rows and theirs else None
    try:
        found = gate.evaluate(
            *scores, against, config, facts.contaminated_items() | contaminated_items(champion), trained
        )
    except gate.TooFewItemsError as error:
        return [], [Check(name="clean_items", passed=False, sentence=f"compared with {against}: {error}")]
    return found, []


def load_training_rows(version: Version) -> TrainingRows | None:
    """Read which examples a version was trained on; None where its run keeps no list, as those of older releases."""
    with tempfile.TemporaryDirectory() as scratch:
        try:
            return TrainingRows.load(Path(MlflowClient().download_artifacts(version.run_id, TRAINING_ROWS, scratch)))
        except (MlflowException, OSError):
            return None


def load_evidence(version: Version) -> Evidence:
    """Read what the run that made a version left for a gate.

    Raises:
        TrackingError: It left nothing.
    """
    advice = "Run its recipe again, or promote it with --force --reason."
    return Evidence.model_validate_json(_text(version, EVIDENCE, advice))


def contaminated_items(version: Version) -> set[str]:
    """Return the items that a version had seen in training, as far as its run tells."""
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
                f"The run that made {version.name} version {version.version} keeps no {name}: {error}. {advice}"
            ) from error
        return Path(path).read_text()


def _documents(decision: Decision) -> Iterable[tuple[str, str]]:
    return (
        ("json", decision.model_dump_json(indent=1)),
        ("md", decision.to_markdown()),
        ("html", decision.to_html()),
    )
