"""Step: token rows and base model -> checkpoint and training report."""

from typing import Annotated

from zenml import get_step_context, step
from zenml.config.cache_policy import CachePolicy

from materializers import CHECKPOINT, DOCUMENT
from steps.caching import library_source_hash
from tuneline.config.sections.load import LoadStepConfig
from tuneline.config.sections.method import Method
from tuneline.config.training.union import AnyTrainingConfig
from tuneline.data.corpus import Corpus
from tuneline.identity import Manifest
from tuneline.model import verification
from tuneline.model.checkpoint import Checkpoint
from tuneline.tracking import runs
from tuneline.train import training_run
from tuneline.train.report import TrainingReport


def cache_key() -> str:
    """Return what decides the result besides the inputs: library source and package versions; not the tracker."""
    libraries = ("torch", "transformers", "peft", "accelerate", "bitsandbytes")
    modules = ("train.training_run", "train.report", "model.checkpoint", "model.verification", "data.corpus")
    return library_source_hash(*modules, libraries=libraries)


@step(
    cache_policy=CachePolicy(cache_func=f"{__name__}.cache_key"),
    experiment_tracker=True,
    output_materializers={"{stage}_checkpoint": CHECKPOINT, "{stage}_training_report": DOCUMENT},
)
def train(
    rows: Corpus,
    base_model: Manifest,
    tokenizer: Manifest,
    load: LoadStepConfig,
    method: Method,
    config: AnyTrainingConfig,
) -> tuple[Annotated[Checkpoint, "{stage}_checkpoint"], Annotated[TrainingReport, "{stage}_training_report"]]:
    """Fine-tune; a child of the MLflow run gets the metrics while training runs."""
    verification.verify_hashes(rows, base_model, tokenizer)
    state = training_run.TrainingJob(rows, base_model, tokenizer, load, method, config).state
    name = f"{get_step_context().pipeline_run.name}-training"
    with runs.start_training_run(name, resume_run_id=state.get_note(runs.TRAINING_RUN_NOTE)) as (run_id, listener):
        state.set_note(runs.TRAINING_RUN_NOTE, run_id)
        checkpoint, report = training_run.train(
            rows, base_model, tokenizer, load, method, config, listeners=(listener,), keeps_state=True
        )
        runs.try_logging(lambda: runs.log_params({"load": report.load, "method": report.method, "train": report.train}))
        runs.try_logging(lambda: runs.log_metrics({f"training.{name}": v for name, v in report.summary.items()}))
        if report.samples:
            runs.try_logging(lambda: runs.log_text("samples.md", report.samples_to_markdown()))
    return checkpoint, report.model_copy(update={"mlflow_run_id": run_id})
