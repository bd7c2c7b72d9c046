"""Builds the trainer of a job and runs the training loop, resuming from the latest checkpoint."""

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
from tuneline.train.checkpoint.training_state import BASE_MODEL_NOTE, TOKENIZER_NOTE, checkpoint_step
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
    """The result of a training loop."""

    recorder: MetricsRecorder
    decisions: dict[str, str] = field(default_factory=dict)
    """Step that the training resumed from, why it stopped early, which weights it returns."""


def build_trainer(job: TrainingJob, loaded: LoadedModel, work: Path) -> StageTrainer:
    """Attach the method to the model, or load the adapter that is trained further, and build the trainer."""
    args = trainer.training_arguments(job.config, loaded.precision, work / "state")
    if job.continued_adapter:
        job.family.check_continuation(job.continued_adapter, job.method, loaded.model)
        model = job.family.attach_saved(loaded.model, job.continued_adapter, trainable=True)
    else:
        model = job.family.attach(loaded.model, job.method, total_steps=job.num_steps, new_ids=loaded.new_ids)
    objective = build_objective(job.config)
    objective.attach(model, job.config.seed)
    _cast_trainable(model, loaded.precision.trained)
    splits = reference_logps.add_reference_columns(job, objective, model, loaded.precision.autocast)
    alpha = job.config.neftune_noise_alpha
    trainer_class = RLTrainer if isinstance(objective, RLObjective) else StageTrainer
    loop = trainer_class(
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
    loop.training_state, loop.save_total_limit = None if cannot_resume(job) else job.state, job.config.save_total_limit
    loop.best = BestWeights(job.state.folder if loop.training_state else work / "state")
    if loop.training_state:
        dtype = str(loaded.precision.autocast or loaded.precision.weights).removeprefix("torch.")
        loop.training_state.set_note("dtype", dtype)
        loop.training_state.set_note(BASE_MODEL_NOTE, job.base_model.model_dump_json())
        loop.training_state.set_note(TOKENIZER_NOTE, job.tokenizer.model_dump_json())
    return loop


def enable_levers(job: TrainingJob, loaded: LoadedModel, loop: StageTrainer) -> Levers:
    """Enable the levers of the recipe; each is verified against the plain model on a short row."""
    row = preference_rows.flatten_row(job.rows.splits["train"][0])
    lengths = [min(length, CHECKED_TOKENS) for length in row["lengths"][:2]]
    starts = [sum(row["lengths"][:i]) for i in range(len(lengths))]
    ids = [token for start, n in zip(starts, lengths, strict=True) for token in row["input_ids"][start : start + n]]
    inputs = move_to_device(collate([{"input_ids": ids, "labels": ids, "lengths": lengths}]), loop.model.device)
    loop.model.train()
    selective, autocast = job.load.gradient_checkpointing == "selective", loaded.precision.autocast
    return apply_levers(job.family, loop.model, job.config.levers, inputs, autocast, recomputes_parts=selective)


def cannot_resume(job: TrainingJob) -> bool:
    """Whether the optimizer steps inside the backward pass and keeps state that no checkpoint can contain."""
    return not OPTIMIZER_SPECS[job.config.optim].resumable


def load_config_for_resume(job: TrainingJob) -> LoadStepConfig:
    """Return the load options, with the dtype that was chosen when this training started.

    `load.dtype: auto` measures which dtype is faster; another choice on resume would lead to other weights.
    """
    dtype = job.state.get_note("dtype") if job.load.dtype == "auto" and job.state.latest() else None
    return job.load.model_copy(update={"dtype": dtype}) if dtype else job.load


def _cast_trainable(model: Any, dtype: torch.dtype) -> None:
    """Cast trainable weights to their dtype: float32 if the frozen weights have 16 bits."""
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)


def run_training(loop: StageTrainer, job: TrainingJob, listeners: tuple[StepListener, ...]) -> LoopResult:
    """Train to the last step, resuming from the latest complete checkpoint if there is one.

    Raises:
        StoppedError: The training was stopped by a signal; its state is saved.
        ProofError: The loss or the gradient norm is not finite.
    """
    from transformers import PrinterCallback

    loop.remove_callback(PrinterCallback)
    latest, decisions = _find_checkpoint(job) if loop.training_state else None, dict[str, str]()
    if latest:
        decisions["resume"] = f"resumed from step {checkpoint_step(latest)} of {job.num_steps}"
        logger.warning("Found a checkpoint of this training: resuming from step %d.", checkpoint_step(latest))
    sampler = build_sampler(job) if job.config.eval_samples else None
    evaluation = EvaluationCallback(job.config, loop, sampler)
    with progress.bar("training", job.num_steps) as advance, stop_on_signals() as stop, _remove_levers_after(loop):
        recorder = MetricsRecorder(advance, listeners, lambda: loop.tokens_seen, loop.history, loop.pop_metrics)
        for callback in (evaluation, recorder, CheckpointCallback(job.config, stop)):
            loop.add_callback(callback)
        with _add_checkpoint_to_errors(job, loop):
            loop.train(resume_from_checkpoint=str(latest) if latest else None)
    if stop.signal_name and loop.state.global_step < job.num_steps and not evaluation.stopped_early:
        raise StoppedError(_stop_message(job, loop, stop.signal_name), by=stop.signal_name)
    if loop.noise:
        loop.noise.remove()
    return LoopResult(recorder, decisions | evaluation.finalize())


@contextmanager
def _add_checkpoint_to_errors(job: TrainingJob, loop: StageTrainer) -> Iterator[None]:
    """Add the latest complete checkpoint to the message of a `ProofError`."""
    try:
        yield
    except VerificationError as error:
        latest = job.state.latest() if loop.training_state else None
        checkpoint = f"Latest complete checkpoint: step {checkpoint_step(latest)}." if latest else "No checkpoint yet."
        raise VerificationError(f"{error} {checkpoint}") from error


@contextmanager
def _remove_levers_after(loop: StageTrainer) -> Iterator[None]:
    """Restore the plain model, also if the training fails."""
    try:
        yield
    finally:
        if loop.levers:
            loop.levers.remove()


def _find_checkpoint(job: TrainingJob) -> Path | None:
    """Return the checkpoint to resume from; warn of other unfinished trainings of the same rows."""
    job.state.discard_unfinished()
    job.state.discard_damaged()
    for name in job.state.unfinished_trainings():
        logger.warning("Another training of these rows is unfinished; it is not resumed: %s.", name)
    return job.state.latest()


def _stop_message(job: TrainingJob, loop: StageTrainer, name: str) -> str:
    message = f"The training was stopped by {name} after step {loop.state.global_step} of {job.num_steps}"
    if loop.training_state is None:
        return f"{message}. The state of {job.config.optim} cannot be saved, so the next run starts from step 0."
    latest = job.state.latest()
    if latest is None or checkpoint_step(latest) != loop.state.global_step:
        start = f"resumes from step {checkpoint_step(latest)}" if latest else "starts from step 0"
        return f"{message}; its state could not be saved, so the next run {start}."
    return f"{message}; its state is saved. Run the same command again to resume."
