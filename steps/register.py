"""Step: evaluation report and model -> registered version and gate decision. Never cached: it completes every run."""

from functools import partial
from pathlib import Path
from typing import Annotated, Any

from zenml import get_step_context, log_metadata, step

from materializers import DOCUMENT
from tuneline.config.recipe import Recipe
from tuneline.config.stages import AnyRecipe
from tuneline.data.corpus import Corpus
from tuneline.errors import TrackingError
from tuneline.evaluation import html_report as report_pages
from tuneline.evaluation import model_under_test, score, score_store
from tuneline.evaluation.report import Report
from tuneline.identity import Manifest, digest
from tuneline.metric_tables import by_metric
from tuneline.model import source, verification
from tuneline.model.checkpoint import Checkpoint
from tuneline.tracking import (
    evidence,
    gate,
    integrity,
    model_card,
    promotion,
    registry,
    run_artifacts,
    runs,
    training_rows,
)
from tuneline.tracking.decision import Decision
from tuneline.tracking.evidence import Check, Evidence
from tuneline.tracking.model_card import CardInputs
from tuneline.tracking.registry import Version
from tuneline.tracking.training_rows import TrainingRows
from tuneline.train import html_report as training_pages
from tuneline.train.checkpoint import training_state
from tuneline.train.report import TrainingReport
from tuneline.zenml_integration import model_versions


@step(enable_cache=False, experiment_tracker=True, output_materializers=DOCUMENT)
def register(
    report: Report,
    model: Checkpoint,
    training_report: TrainingReport,
    sources: Manifest,
    benchmarks: Manifest,
    base_model: Manifest,
    mixture: Corpus,
    rows: Corpus,
    recipe: AnyRecipe,
) -> Annotated[Decision, "{stage}_decision"]:
    """Complete the MLflow run, evaluate the gate, register the model once per content, and move its aliases."""
    verification.verify_hashes(model)
    _log_run(report, training_report, sources, mixture, rows, recipe)
    champion = registry.get_champion(recipe.registry.model_name)
    config = recipe.gate()
    facts = evidence.collect(model, mixture, rows, config, recipe.merge_adapter.max_kl, report.methods)
    run_artifacts.log_evidence(facts)
    trained_on = training_rows.from_mixture(mixture, recipe.merge.split_by)
    run_artifacts.log_training_rows(trained_on)
    findings, checks = list[gate.Finding](), list[Check]()
    if champion is None or champion.content_hash != model.content_hash():
        findings, checks = _compare(report, champion, mixture, benchmarks, recipe, facts, trained_on)
    version, new = _register_version(model, sources, training_report, recipe)
    if not new:
        _check_stored(version, model)
    checks = [*evidence.check_preconditions(facts, config.preconditions), *checks]
    decision = promotion.decide(version, new=new, champion=champion, findings=findings, checks=checks, config=config)
    run_artifacts.log_decision(decision)
    inputs = (recipe, sources, base_model, mixture.counts, report.metrics(), facts, decision, model.content_hash())
    run_artifacts.log_card(model_card.render(CardInputs(*inputs)), version if new else None)
    model_versions.mirror(decision.model_name, decision)
    if training_report.state:
        training_state.delete_state(training_report.state)
    log_metadata({"version": decision.version, "promoted": decision.promoted, "sentence": decision.sentence})
    return decision


def _compare(
    report: Report,
    champion: Version | None,
    mixture: Corpus,
    benchmarks: Manifest,
    recipe: Recipe,
    facts: Evidence,
    trained_on: TrainingRows,
) -> tuple[list[gate.Finding], list[Check]]:
    """Compare with the base model and, if there is one, with the champion, which is scored on the same items."""
    candidate, base = by_metric(report.model), by_metric(report.base)
    findings = gate.evaluate(candidate, base, "the base model", facts.gate, facts.contaminated_items())
    if champion is None:
        return findings, []
    folder = integrity.verified_folder(champion, full=True)
    config = recipe.for_evaluate()
    scores = score.score_all(
        model_under_test.stored_model("champion", folder, champion.content_hash, config),
        source.tokenizer_manifest(folder),
        mixture.splits["validation"],
        benchmarks,
        config,
    )
    both = candidate, by_metric(scores)
    more, checks = run_artifacts.compare_with_champion(both, champion, facts, trained_on, facts.gate)
    return findings + more, checks


def _register_version(
    model: Checkpoint, sources: Manifest, training_report: TrainingReport, recipe: Recipe
) -> tuple[Version, bool]:
    registry.check_servable(model.path)
    context = get_step_context()
    artifact = context.inputs["model"][0]
    folder = Path(artifact.uri)
    tags = {
        "tuneline.recipe": digest(recipe.model_dump(mode="json")),
        "tuneline.data": sources.content_hash(),
        "tuneline.base_model": str(model.identity["base_model"]),
        "tuneline.tokenizer": str(model.identity["tokenizer"]),
        "tuneline.training_run": training_report.mlflow_run_id or "",
        "zenml.run": context.pipeline_run.name,
        "zenml.run_id": str(context.pipeline_run.id),
        "zenml.artifact": str(artifact.id),
    }
    uri = folder.as_uri() if folder.is_dir() else artifact.uri
    return registry.register(recipe.registry.model_name, model.content_hash(), uri, runs.active_run_id(), tags)


def _check_stored(version: Version, model: Checkpoint) -> None:
    """Check the files of a version that is already registered with the content of this model.

    Raises:
        TrackingError: The files are damaged.
    """
    try:
        integrity.check_stored(version)
    except TrackingError as error:
        raise TrackingError(f"{error} {model.path} has the same content; copy it from there.") from error


def _log_run(
    report: Report,
    training_report: TrainingReport,
    sources: Manifest,
    mixture: Corpus,
    rows: Corpus,
    recipe: Recipe,
) -> None:
    context = get_step_context()
    scored_with = {name: report.methods.get(name, "unknown") for name in evidence.SCORING_SETTINGS}
    runs.log_params(recipe.model_dump(mode="json") | {"scored_with": scored_with})
    runs.log_history(training_report.history)
    figures: dict[str, Any] = {f"training.{name}": value for name, value in training_report.summary.items()}
    for name, parts in report.metrics().items():
        figures[name] = parts["model"].mean
        figures |= {f"{name}.{end}": getattr(parts["model"], end) for end in ("low", "high")}
        figures |= {f"{name}.base": parts["base"].mean, f"{name}.gain": parts["gain"].mean}
    for who, suffix in (("model", ""), ("base", ".base")):
        figures |= {f"total.{name}{suffix}": value for name, value in report.totals.get(who, {}).items()}
    runs.log_metrics(figures | _counts(mixture, rows))
    runs.log_inputs(sources, "training")
    _log_reports(report, training_report)
    inputs = {f"zenml.artifact.{name}": str(artifacts[0].id) for name, artifacts in context.inputs.items()}
    runs.set_tags(
        {
            "tuneline.kind": "pipeline",
            "zenml.run": context.pipeline_run.name,
            "zenml.run_id": str(context.pipeline_run.id),
            "tuneline.git_commit": runs.git_commit(),
            "tuneline.training_run": training_report.mlflow_run_id,
            **inputs,
        }
    )


def _log_reports(report: Report, training_report: TrainingReport) -> None:
    runs.log_text("evaluation/report.html", report_pages.to_html(report))
    runs.log_text("evaluation/report.md", report.to_markdown())
    runs.log_text("training/report.html", training_pages.to_html(training_report))
    for who, scores in (("base", report.base), ("model", report.model)):
        runs.log_file("evaluation", f"{who}.parquet", partial(score_store.write_table, score_store.to_table(scores)))


def _counts(mixture: Corpus, rows: Corpus) -> dict[str, float]:
    """Return how many rows were dropped, are contaminated, or remain, as metrics."""
    dropped = sum(sum(source["dropped"].values()) for source in mixture.counts["sources"])
    plain = {"data.rows_dropped": dropped, "data.exact_copies_dropped": mixture.counts["exact_copies_dropped"]}
    for name, matches in mixture.counts["contamination"].items():
        plain[f"data.contaminated.{name}"] = matches["exact"] + matches["ngram"]
    for split, counts in rows.counts.items():
        plain |= {f"data.{split}.{name}": value for name, value in counts.items() if isinstance(value, int | float)}
        plain[f"data.{split}.beyond_max_tokens"] = sum(counts.get("beyond_max_tokens", {}).values())
    return {name: float(value) for name, value in plain.items()}
