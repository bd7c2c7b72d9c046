"""The training step: load the model, check packing, attach the method, train, evaluate and save."""

import shutil
import time
from pathlib import Path

import torch
from transformers import set_seed

from tuneline import owner
from tuneline.config.sections.load import LoadStepConfig
from tuneline.config.sections.method import Method
from tuneline.config.training.base import TrainingConfig
from tuneline.data.corpus import Corpus
from tuneline.identity import Manifest, digest
from tuneline.model import device, patches
from tuneline.model.checkpoint import Checkpoint
from tuneline.model.load import LoadedModel, load_for_training
from tuneline.train import loop as loops
from tuneline.train import outputs, packing_check
from tuneline.train.job import TrainingJob
from tuneline.train.monitoring import mfu
from tuneline.train.monitoring.recorder import StepListener
from tuneline.train.monitoring.resource_usage import ResourceUsage
from tuneline.train.outputs import mean_loss
from tuneline.train.report import TrainingReport

__all__ = ["TrainingJob", "mean_loss", "train"]


def train(
    rows: Corpus,
    base_model: Manifest,
    tokenizer: Manifest,
    load: LoadStepConfig,
    method: Method,
    config: TrainingConfig,
    listeners: tuple[StepListener, ...] = (),
    *,
    keeps_state: bool = False,
) -> tuple[Checkpoint, TrainingReport]:
    """Fine-tune a base model on tokenized rows.

    Args:
        rows: Splits `train` and `validation` of `tuneline.data.tokenization.tokenize`.
        base_model: Location of the weights, followed by the adapters that are attached first.
        tokenizer: The tokenizer that encoded the rows; it contains the new tokens.
        load: Load options of the base model.
        method: The training method.
        config: Hyperparameters of the training and its objective.
        listeners: Called with the metrics of each optimizer step.
        keeps_state: Keep the last checkpoint of the training state until the caller has stored the result and calls
            `training_state.delete_state(report.state)`. By default it is deleted at the end of the training.

    Returns:
        A checkpoint in a scratch folder under the state root, and a report.

    Raises:
        RecipeError: The machine, the model or the method does not support an option of the recipe.
        VerificationError: Packed examples attend to each other in this architecture, or the loss is not finite.
        StoppedError: The training was stopped by a signal, or another process is running the same training.
    """
    job = TrainingJob(rows, base_model, tokenizer, load, method, config)
    job.check_packing_support()
    job.state.check_resume_from(config.resume_from)
    with job.state.exclusive():
        checkpoint, report = _train(job, listeners)
        if not (keeps_state and job.state.latest()):
            job.state.delete()
            return checkpoint, report
        job.state.mark_finished()
        return checkpoint, report.model_copy(update={"state": job.state.folder.name})


def _train(job: TrainingJob, listeners: tuple[StepListener, ...]) -> tuple[Checkpoint, TrainingReport]:
    start = time.monotonic()
    load = loops.load_config_for_resume(job)
    phase, resources = mfu.PhaseTimer(), ResourceUsage()
    with phase("load"):
        loaded = load_for_training(
            job.base_model, job.tokenizer, load, trains_all=job.trains_base_weights, packed=job.packed
        )
    compute_dtype = loaded.precision.autocast or loaded.precision.weights
    with phase("prove"):
        attention, isolation = _check_isolation(job, loaded, exact=compute_dtype == torch.float32)
    set_seed(job.config.seed)
    work = _work_folder(job)
    with phase("prepare"):
        loop = loops.build_trainer(job, loaded, work)
    decisions = loaded.decisions | patches.fuse_adapter(loop.model, job.load) | {"isolation": isolation}
    if attention != loaded.attention:
        decisions["attention"] = f"{attention}: the first implementation that isolates packed examples"
    loop.levers = loops.enable_levers(job, loaded, loop)
    decisions |= loop.levers.decisions
    with phase("train"), resources():
        result = loops.run_training(loop, job, listeners)
    decisions |= result.decisions
    with phase("evaluate"):
        validation = {f"validation_{name}": value for name, value in loop.validate().items()}
    before = result.recorder.tokens_before
    tokens, seconds = loop.tokens_seen - before, phase.seconds["train_seconds"]
    throughput = mfu.throughput_metrics(loop.model, tokens, seconds, compute_dtype, device.device_type(), before=before)
    summary = outputs.summarize_training(loop, result.recorder, start) | validation | throughput | resources.metrics()
    with phase("save"):
        checkpoint = outputs.save_checkpoint(job, loop, work, {"attention": attention})
    return checkpoint, outputs.build_report(job, decisions, result.recorder, loop.samples, summary | phase.seconds)


def _check_isolation(job: TrainingJob, loaded: LoadedModel, *, exact: bool) -> tuple[str, str]:
    """Check that packed examples are isolated; return the attention implementation, and the result as text."""
    return packing_check.check_packing_isolation(
        loaded.model,
        job.rows,
        batch_size=job.config.per_device_train_batch_size,
        exact=exact,
        may_change=job.load.attention == "auto" and job.load.s2_group_size_ratio is None,
    )


def _work_folder(job: TrainingJob) -> Path:
    key = digest(job.state.identity)
    work = owner.scratch_folder() / f"train-{key[:32]}"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    return work
