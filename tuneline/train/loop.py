"""Make the training loop of a job, and run it to its end from wherever it stands."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from tuneline import progress
from tuneline.config.sections.load import LoadStepConfig
from tuneline.config.training.optimizers import OPTIMIZER_SPECS
from tuneline.data.tokenization import preference_rows
from tuneline.errors import StoppedError, VerificationError
from tuneline.model.load import LoadedModel
from tuneline.train import neftune, reference_logps, trainer
from tuneline.train.checkpoint.best_weights import BestWeights
from tuneline.train.checkpoint.resumable_trainer import CheckpointCallback, stop_on_signals
from tuneline.train.checkpoint.training_state import checkpoint_step
from tuneline.train.collate import collate, move_to_device
from tuneline.train.job import TrainingJob
from tuneline.train.levers.apply import Levers, apply_levers
from tuneline.train.monitoring.evaluation_callback import EvaluationCallback
from tuneline.train.monitoring.recorder import MetricsRecorder, StepListener
from tuneline.train.monitoring.sample_generations import build_sampler
from tuneline.train.objectives import build_objective
from tuneline.train.packing_check import CHECKED_TOKENS
from tuneline.train.rl.objectives import RLObjective
from tuneline.train.rl.trainer import RLTrainer, configure_rollouts
from tuneline.train.trainer import StageTrainer

logger = logging.getLogger(__name__)


@dataclass
class LoopResult:
    """What a training loop came to."""

    recorder: MetricsRecorder
    decisions: dict[str, str] = field(default_factory=dict)
    """Where it went on from, why it stopped, which weights were kept."""


def build_trainer(job: TrainingJob, loaded: LoadedModel, work: Path) -> StageTrainer:
    """Attach what is trained, or go on with the adapter that the recipe continues, and make the training loop."""
    args = trainer.training_arguments(job.config, loaded.precision, work / "state")
    if job.continued_adapter:
        job.family.check_continuation(job.continued_adapter, job.method, loaded.model)
        model = job.family.attach_saved(loaded.model, job.continued_adapter, trainable=True)
    else:
        model = job.family.attach(loaded.model, job.method, total_steps=job.num_steps, new_ids=loaded.new_ids)
    objective = build_objective(job.config)
    objective.attach(model, job.config.seed)
    _hold_trained(model, loaded.precision.trained)
    splits = reference_logps.add_reference_columns(job, objective, model, loaded.precision.autocast)
    alpha = job.config.neftune_noise_alpha
    kind = RLTrainer if isinstance(objective, RLObjective) else StageTrainer
    loop = kind(
        job.family,
        job.method,
        objective,
        neftune.NeftuneNoise(model, alpha) if alpha else None,
        model=model,
        args=args,
        train_dataset=splits["train"],
        eval_dataset=splits["validation"],
        data_collator=objective.collate,
    )
    if isinstance(loop, RLTrainer):
        configure_rollouts(loop, job)
    loop.add_callback(trainer.AfterStepCallback(job.family, model))
    loop.kept, loop.keep = None if cannot_resume(job) else job.state, job.config.save_total_limit
    loop.best = BestWeights(job.state.folder if loop.kept else work / "state")
    if loop.kept:
        loop.kept.set_note("dtype", str(loaded.precision.autocast or loaded.precision.weights).removeprefix("torch."))
    return loop


def enable_levers(job: TrainingJob, loaded: LoadedModel, loop: StageTrainer) -> Levers:
    """Switch on what makes a step fast, held against the plain model on a short row."""
    row = preference_rows.flatten_row(job.rows.splits["train"][0])
    lengths = [min(length, CHECKED_TOKENS) for length in row["lengths"][:2]]
    starts = [sum(row["lengths"][:i]) for i in range(len(lengths))]
    ids = [token for start, n in zip(starts, lengths, strict=True) for token in row["input_ids"][start : start + n]]
    inputs = move_to_device(collate([{"input_ids": ids, "labels": ids, "lengths": lengths}]), loop.model.device)
    loop.model.train()
    selective, autocast = job.load.gradient_checkpointing == "selective", loaded.precision.autocast
    return apply_levers(job.family, loop.model, job.config.levers, inputs, autocast, recomputes_parts=selective)


def cannot_resume(job: TrainingJob) -> bool:
    """Some optimizers that step inside the backward pass keep their state there, out of reach of a checkpoint."""
    return not OPTIMIZER_SPECS[job.config.optim].resumable


def load_config_for_resume(job: TrainingJob) -> LoadStepConfig:
    """Keep the number format that a race chose when this training began: another would end in other weights."""
    before = job.state.told("dtype") if job.load.dtype == "auto" and job.state.latest() else None
    return job.load.model_copy(update={"dtype": before}) if before else job.load


def _hold_trained(model: Any, dtype: torch.dtype) -> None:
    """Give trained weights their precision: float32 beside frozen weights of 16 bits."""
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)


def run_training(loop: StageTrainer, job: TrainingJob, listeners: tuple[StepListener, ...]) -> LoopResult:
    """Train to the end, from the last whole checkpoint where there is one.

    Raises:
        StoppedError: A signal asked to stop; the state is saved.
        ProofError: The loss or the gradients are no number.
    """
    from transformers import PrinterCallback

    loop.remove_callback(PrinterCallback)
    latest, decisions = _last_of(job) if loop.kept else None, dict[str, str]()
    if latest:
        decisions["resume"] = f"went on from step {checkpoint_step(latest)} of {job.num_steps}"
        logger.warning("This training was begun before: it goes on from step %d.", checkpoint_step(latest))
    sampler = build_sampler(job) if job.config.eval_samples else None
    watch = EvaluationCallback(job.config, loop, sampler)
    with progress.bar("training", job.num_steps) as advance, stop_on_signals() as stop, _levers_of(loop):
        recorder = MetricsRecorder(advance, listeners, lambda: loop.tokens_seen, loop.history, loop.figures)
        for callback in (watch, recorder, CheckpointCallback(job.config, stop)):
            loop.add_callback(callback)
        with _telling_what_is_whole(job, loop):
            loop.train(resume_from_checkpoint=str(latest) if latest else None)
    if stop.asked and loop.state.global_step < job.num_steps and not watch.stopped:
        raise StoppedError(_stopped(job, loop, stop.asked), by=stop.asked)
    if loop.noise:
        loop.noise.remove()
    return LoopResult(recorder, decisions | watch.finish())


@contextmanager
def _telling_what_is_whole(job: TrainingJob, loop: StageTrainer) -> Iterator[None]:
    """Add to a failed proof which checkpoint is left."""
    try:
        yield
    except VerificationError as error:
        latest = job.state.latest() if loop.kept else None
        have = (
            f"The last whole checkpoint is of step {checkpoint_step(latest)}."
            if latest
            else "There is no checkpoint yet."
        )
        raise VerificationError(f"{error} {have}") from error


@contextmanager
def _levers_of(loop: StageTrainer) -> Iterator[None]:
    """Leave a plain model behind, however the training ends."""
    try:
        yield
    finally:
        if loop.levers:
            loop.levers.remove()


def _last_of(job: TrainingJob) -> Path | None:
    """Return the checkpoint to go on from; name unfinished trainings that this recipe does not go on with."""
    job.state.discard_unfinished()
    job.state.discard_damaged()
    for other in job.state.others():
        logger.warning("Another training of these rows is unfinished and is left alone: %s.", other)
    return job.state.latest()


def _stopped(job: TrainingJob, loop: StageTrainer, name: str) -> str:
    done = f"The training was stopped by {name} after step {loop.state.global_step} of {job.num_steps}"
    if loop.kept is None:
        return f"{done}. {job.config.optim} keeps no state that can be saved, so it starts over next time."
    latest = job.state.latest()
    if latest is None or checkpoint_step(latest) != loop.state.global_step:
        have = f"goes on from step {checkpoint_step(latest)}" if latest else "starts over"
        return f"{done}; its state could not be saved, so it {have} next time."
    return f"{done}; its state is saved. Give the same command again to go on."
