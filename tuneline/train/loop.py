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
from tuneline.config.training.optimizers import TRAITS
from tuneline.data.tokenization import preference_rows
from tuneline.errors import ProofError, StoppedError
from tuneline.model.load import Loaded
from tuneline.train import neftune, reference_logps, trainer
from tuneline.train.checkpoint.best_weights import Best
from tuneline.train.checkpoint.resumable_trainer import Saving, stopped_by_signals
from tuneline.train.checkpoint.training_state import step_of
from tuneline.train.collate import collate, moved
from tuneline.train.job import Job
from tuneline.train.levers.apply import Levers, apply
from tuneline.train.monitoring.evaluation_callback import Watch
from tuneline.train.monitoring.recorder import Listener, Recorder
from tuneline.train.monitoring.sample_generations import sampler_of
from tuneline.train.objectives import objective_of
from tuneline.train.packing_check import CHECKED_TOKENS
from tuneline.train.rl.objectives import RL
from tuneline.train.rl.trainer import RLTrainer, equip
from tuneline.train.trainer import StageTrainer

logger = logging.getLogger(__name__)


@dataclass
class Ran:
    """What a training loop came to."""

    recorder: Recorder
    decisions: dict[str, str] = field(default_factory=dict)
    """Where it went on from, why it stopped, which weights were kept."""


def make(job: Job, loaded: Loaded, work: Path) -> StageTrainer:
    """Attach what is trained, or go on with the adapter that the recipe continues, and make the training loop."""
    args = trainer.arguments(job.config, loaded.precision, work / "state")
    if job.continued:
        job.family.check_continues(job.continued, job.method, loaded.model)
        model = job.family.attach_saved(loaded.model, job.continued, trainable=True)
    else:
        model = job.family.attach(loaded.model, job.method, total_steps=job.num_steps, new_ids=loaded.new_ids)
    objective = objective_of(job.config)
    objective.attach(model, job.config.seed)
    _hold_trained(model, loaded.precision.trained)
    splits = reference_logps.prepared(job, objective, model, loaded.precision.autocast)
    alpha = job.config.neftune_noise_alpha
    kind = RLTrainer if isinstance(objective, RL) else StageTrainer
    loop = kind(
        job.family,
        job.method,
        objective,
        neftune.Noise(model, alpha) if alpha else None,
        model=model,
        args=args,
        train_dataset=splits["train"],
        eval_dataset=splits["validation"],
        data_collator=objective.collate,
    )
    if isinstance(loop, RLTrainer):
        equip(loop, job)
    loop.add_callback(trainer.AfterStep(job.family, model))
    loop.kept, loop.keep = None if keeps_no_state(job) else job.state, job.config.save_total_limit
    loop.best = Best(job.state.folder if loop.kept else work / "state")
    if loop.kept:
        loop.kept.remember("dtype", str(loaded.precision.autocast or loaded.precision.weights).removeprefix("torch."))
    return loop


def with_levers(job: Job, loaded: Loaded, loop: StageTrainer) -> Levers:
    """Switch on what makes a step fast, held against the plain model on a short row."""
    row = preference_rows.laid_out(job.rows.splits["train"][0])
    lengths = [min(length, CHECKED_TOKENS) for length in row["lengths"][:2]]
    starts = [sum(row["lengths"][:i]) for i in range(len(lengths))]
    ids = [token for start, n in zip(starts, lengths, strict=True) for token in row["input_ids"][start : start + n]]
    inputs = moved(collate([{"input_ids": ids, "labels": ids, "lengths": lengths}]), loop.model.device)
    loop.model.train()
    selective, autocast = job.load.gradient_checkpointing == "selective", loaded.precision.autocast
    return apply(job.family, loop.model, job.config.levers, inputs, autocast, recomputes_parts=selective)


def keeps_no_state(job: Job) -> bool:
    """Some optimizers that step inside the backward pass keep their state there, out of reach of a checkpoint."""
    return not TRAITS[job.config.optim].keeps_state


def held_as_before(job: Job) -> LoadStepConfig:
    """Keep the number format that a race chose when this training began: another would end in other weights."""
    before = job.state.told("dtype") if job.load.dtype == "auto" and job.state.latest() else None
    return job.load.model_copy(update={"dtype": before}) if before else job.load


def _hold_trained(model: Any, dtype: torch.dtype) -> None:
    """Give trained weights their precision: float32 beside frozen weights of 16 bits."""
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)


def run(loop: StageTrainer, job: Job, listeners: tuple[Listener, ...]) -> Ran:
    """Train to the end, from the last whole checkpoint where there is one.

    Raises:
        StoppedError: A signal asked to stop; the state is saved.
        ProofError: The loss or the gradients are no number.
    """
    from transformers import PrinterCallback

    loop.remove_callback(PrinterCallback)
    latest, decisions = _last_of(job) if loop.kept else None, dict[str, str]()
    if latest:
        decisions["resume"] = f"went on from step {step_of(latest)} of {job.num_steps}"
        logger.warning("This training was begun before: it goes on from step %d.", step_of(latest))
    sampler = sampler_of(job) if job.config.eval_samples else None
    watch = Watch(job.config, loop, sampler)
    with progress.bar("training", job.num_steps) as advance, stopped_by_signals() as stop, _levers_of(loop):
        recorder = Recorder(advance, listeners, lambda: loop.tokens_seen, loop.history, loop.figures)
        for callback in (watch, recorder, Saving(job.config, stop)):
            loop.add_callback(callback)
        with _telling_what_is_whole(job, loop):
            loop.train(resume_from_checkpoint=str(latest) if latest else None)
    if stop.asked and loop.state.global_step < job.num_steps and not watch.stopped:
        raise StoppedError(_stopped(job, loop, stop.asked), by=stop.asked)
    if loop.noise:
        loop.noise.remove()
    return Ran(recorder, decisions | watch.finish())


@contextmanager
def _telling_what_is_whole(job: Job, loop: StageTrainer) -> Iterator[None]:
    """Add to a failed proof which checkpoint is left."""
    try:
        yield
    except ProofError as error:
        latest = job.state.latest() if loop.kept else None
        have = f"The last whole checkpoint is of step {step_of(latest)}." if latest else "There is no checkpoint yet."
        raise ProofError(f"{error} {have}") from error


@contextmanager
def _levers_of(loop: StageTrainer) -> Iterator[None]:
    """Leave a plain model behind, however the training ends."""
    try:
        yield
    finally:
        if loop.levers:
            loop.levers.remove()


def _last_of(job: Job) -> Path | None:
    """Return the checkpoint to go on from; name unfinished trainings that this recipe does not go on with."""
    job.state.discard_unfinished()
    job.state.discard_broken()
    for other in job.state.others():
        logger.warning("Another training of these rows is unfinished and is left alone: %s.", other)
    return job.state.latest()


def _stopped(job: Job, loop: StageTrainer, name: str) -> str:
    done = f"The training was stopped by {name} after step {loop.state.global_step} of {job.num_steps}"
    if loop.kept is None:
        return f"{done}. {job.config.optim} keeps no state that can be saved, so it starts over next time."
    latest = job.state.latest()
    if latest is None or step_of(latest) != loop.state.global_step:
        have = f"goes on from step {step_of(latest)}" if latest else "starts over"
        return f"{done}; its state could not be saved, so it {have} next time."
    return f"{done}; its state is saved. Give the same command again to go on."
