"""Step: token rows and base model -> checkpoint, with the report of its training."""

from typing import Annotated

from zenml import get_step_context, step
from zenml.config.cache_policy import CachePolicy

from materializers import CHECKPOINT, DOCUMENT
from steps.caching import code_behind
from tuneline.config.sections.load import LoadStepConfig
from tuneline.config.sections.method import Method
from tuneline.config.training.union import Training
from tuneline.data.corpus import Corpus
from tuneline.identity import Manifest
from tuneline.model import verification
from tuneline.model.checkpoint import Checkpoint
from tuneline.tracking import runs
from tuneline.train import training_run
from tuneline.train.report import TrainingReport


def watched() -> str:
    """What the cache key sees beside this step; the tracker does not change what is learned."""
    libraries = ("torch", "transformers", "peft", "accelerate", "bitsandbytes")
    modules = ("train.training_run", "train.report", "model.checkpoint", "model.verification", "data.corpus")
    return code_behind(*modules, libraries=libraries)


@step(
    cache_policy=CachePolicy(cache_func=f"{__name__}.watched"),
    experiment_tracker=True,
    output_materializers={"{stage}_checkpoint": CHECKPOINT, "{stage}_training_report": DOCUMENT},
)
def train(
    rows: Corpus, base_model: Manifest, tokenizer: Manifest, load: LoadStepConfig, method: Method, config: Training
) -> tuple[Annotated[Checkpoint, "{stage}_checkpoint"], Annotated[TrainingReport, "{stage}_training_report"]]:
    """Fine-tune, with live curves in a child of the MLflow run."""
    verification.check_fully(rows, base_model, tokenizer)
    state = training_run.Job(rows, base_model, tokenizer, load, method, config).state
    name = f"{get_step_context().pipeline_run.name}-training"
    with runs.training_child(name, went_on=state.told(runs.TRAINING)) as (run_id, listener):
        state.remember(runs.TRAINING, run_id)
        checkpoint, report = training_run.train(
            rows, base_model, tokenizer, load, method, config, listeners=(listener,), keeps_state=True
        )
        runs.attempt(lambda: runs.log_params({"load": report.load, "method": report.method, "train": report.train}))
        runs.attempt(lambda: runs.log_metrics({f"training.{name}": v for name, v in report.summary.items()}))
        if report.samples:
            runs.attempt(lambda: runs.log_text("samples.md", report.samples_to_markdown()))
    return checkpoint, report.model_copy(update={"mlflow_run_id": run_id})
