"""Training on rows: load, prove, attach, train, judge, save; what is minimised is the objective's."""

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

__all__ = ["Job", "mean_loss", "train"]


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
        base_model: Where the weights lie, and behind them the adapters that are attached first.
        tokenizer: The one that made the rows; it says which tokens are new.
        load: How the base model is held.
        method: What is trained.
        config: The optimisation, and what is minimised.
        listeners: Called with the figures of each optimizer step.
        keeps_state: Leave the last checkpoint of the training state to the caller, who drops it by
            `training_state.forget(report.state)` once the result is stored; else it goes at the end.

    Returns:
        A checkpoint in a scratch folder under the state root, and a report.

    Raises:
        RecipeError: This machine, this model or this method cannot do what the recipe asks.
        ProofError: Packed examples see each other in this architecture, or the loss is no number.
        StoppedError: A signal asked to stop, or another process trains the same.
    """
    job = TrainingJob(rows, base_model, tokenizer, load, method, config)
    job.check_packing_support()
    job.state.check(config.resume_from)
    with job.state.alone():
        checkpoint, report = _train(job, listeners)
        if not (keeps_state and job.state.latest()):
            job.state.remove()
            return checkpoint, report
        job.state.finish()
        return checkpoint, report.model_copy(update={"state": job.state.folder.name})


def _train(job: TrainingJob, listeners: tuple[StepListener, ...]) -> tuple[Checkpoint, TrainingReport]:
    start = time.monotonic()
    held = loops.load_config_for_resume(job)
    phase, footprint = mfu.PhaseTimer(), ResourceUsage()
    with phase("load"):
        loaded = load_for_training(
            job.base_model, job.tokenizer, held, trains_all=job.trains_base_weights, packed=job.packed
        )
    computed = loaded.precision.autocast or loaded.precision.weights
    with phase("prove"):
        kind, isolation = _isolated(job, loaded, exact=computed == torch.float32)
    set_seed(job.config.seed)
    work = _work_folder(job)
    with phase("prepare"):
        loop = loops.build_trainer(job, loaded, work)
    decisions = loaded.decisions | patches.fuse_adapter(loop.model, job.load) | {"isolation": isolation}
    if kind != loaded.attention:
        decisions["attention"] = f"{kind}: the first that keeps packed examples apart"
    loop.levers = loops.enable_levers(job, loaded, loop)
    decisions |= loop.levers.decisions
    with phase("train"), footprint():
        ran = loops.run_training(loop, job, listeners)
    decisions |= ran.decisions
    with phase("evaluate"):
        held_out = {f"validation_{name}": value for name, value in loop.validate().items()}
    before = ran.recorder.tokens_before
    seen, seconds = loop.tokens_seen - before, phase.seconds["train_seconds"]
    done = mfu.throughput_metrics(loop.model, seen, seconds, computed, device.device_type(), before=before)
    summary = outputs.summarize_training(loop, ran.recorder, start) | held_out | done | footprint.figures()
    with phase("save"):
        checkpoint = outputs.save_checkpoint(job, loop, work, {"attention": kind})
    return checkpoint, outputs.build_report(job, decisions, ran.recorder, loop.samples, summary | phase.seconds)


def _isolated(job: TrainingJob, loaded: LoadedModel, *, exact: bool) -> tuple[str, str]:
    """Prove that packed examples do not see each other; return the attention of which that is true, and the finding."""
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
