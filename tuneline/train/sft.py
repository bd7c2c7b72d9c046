"""Supervised fine-tuning: load, attach, train, save; the loop is `tuneline.train.trainer`."""

import logging
import platform
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import set_seed

from tuneline import progress, state
from tuneline.config.loader import LoadStepConfig
from tuneline.config.method import Method
from tuneline.config.optimizers import TRAITS
from tuneline.config.train import TrainConfig
from tuneline.data.corpus import Corpus
from tuneline.errors import RecipeError, StoppedError
from tuneline.identity import Manifest, digest
from tuneline.model import patches, precision, source
from tuneline.model.checkpoint import Checkpoint
from tuneline.model.load import Loaded, load_base
from tuneline.model.methods import families
from tuneline.model.methods.base import Family
from tuneline.train import noise, proof, receipt, trainer
from tuneline.train.callbacks import Listener, Recorder, memory_bytes
from tuneline.train.collate import collate
from tuneline.train.levers.apply import Levers, apply
from tuneline.train.proof import CHECKED_TOKENS
from tuneline.train.report import TrainingReport
from tuneline.train.resumable import Saving, stopped_by_signals
from tuneline.train.resume import State, step_of
from tuneline.train.trainer import SFTTrainer

logger = logging.getLogger(__name__)

LIBRARIES = ("torch", "transformers", "peft", "accelerate")


@dataclass(frozen=True)
class Job:
    """What a training starts from."""

    rows: Corpus
    base_model: Manifest
    tokenizer: Manifest
    load: LoadStepConfig
    method: Method
    config: TrainConfig

    @property
    def family(self) -> Family:
        """The method's family."""
        return families[self.method.type]

    @cached_property
    def packed(self) -> bool:
        """Examples stand side by side in one forward pass."""
        if self.config.per_device_train_batch_size > 1:
            return True
        return any(len(lengths) > 1 for split in self.rows.splits.values() for lengths in split["lengths"])

    @property
    def trains_all(self) -> bool:
        """The base's own weights change while training, so that rounding them to 16 bits would change the model.

        Frozen layers beside trained ones may be rounded on a GPU, where products of both are computed in one type.
        """
        if self.method.type == "freeze" and torch.cuda.is_available():
            return False
        return not self.family.off_is_base(self.method)

    @property
    def continued(self) -> Path | None:
        """The adapter that is trained further, if there is one."""
        return source.adapters_of(self.base_model)[-1] if "continue" in self.load.uses else None

    @cached_property
    def state(self) -> State:
        """Where the training state is kept, by what is trained."""
        return State(
            {
                "rows": self.rows.content_hash(),
                "base_model": self.base_model.content_hash(),
                "tokenizer": self.tokenizer.content_hash(),
                "load": self.load.model_dump(mode="json"),
                "method": self.method.model_dump(mode="json"),
                "train": self.config.shaping(),
            }
        )

    @property
    def num_steps(self) -> int:
        """Optimizer steps, counted as transformers' Trainer does."""
        if self.config.max_steps > 0:
            return self.config.max_steps
        passes = -(-len(self.rows.splits["train"]) // self.config.per_device_train_batch_size)
        per_epoch = max(-(-passes // self.config.gradient_accumulation_steps), 1)
        return int(-(-per_epoch * self.config.num_train_epochs // 1))


def train(
    rows: Corpus,
    base_model: Manifest,
    tokenizer: Manifest,
    load: LoadStepConfig,
    method: Method,
    config: TrainConfig,
    listeners: tuple[Listener, ...] = (),
) -> tuple[Checkpoint, TrainingReport]:
    """Fine-tune a base model on tokenized rows.

    Args:
        rows: Splits `train` and `validation` of `tuneline.data.tokenize`.
        base_model: Where the weights lie, and behind them the adapters that are attached first.
        tokenizer: The one that made the rows; it says which tokens are new.
        load: How the base model is held.
        method: What is trained.
        config: The optimisation.
        listeners: Called with the figures of each optimizer step.

    Returns:
        A checkpoint in a scratch folder under the state root, and a report.

    Raises:
        RecipeError: This machine, this model or this method cannot do what the recipe asks.
        ProofError: Packed examples see each other in this architecture, or the loss is no number.
    """
    start = time.monotonic()
    job = Job(rows, base_model, tokenizer, load, method, config)
    _refuse_shared_rows(job)
    held = _held_as_before(job)
    phase = receipt.Phases()
    with phase("load"):
        loaded = load_base(base_model, tokenizer, held, trains_all=job.trains_all, packed=job.packed)
    computed = loaded.precision.autocast or loaded.precision.weights
    with phase("prove"):
        kind, isolation = _isolated(job, loaded, exact=computed == torch.float32)
    set_seed(config.seed)
    work = _work_folder(job)
    loop = _loop(job, loaded, work)
    decisions = loaded.decisions | patches.fuse_adapter(loop.model, load) | {"isolation": isolation}
    if kind != loaded.attention:
        decisions["attention"] = f"{kind}: the first that keeps packed examples apart"
    loop.levers = _levers(job, loaded, loop)
    decisions |= loop.levers.decisions
    with phase("train"):
        recorder, went_on = _run(loop, job, listeners)
    decisions |= {"resume": went_on} if went_on else {}
    device, autocast = precision.device_type(), loaded.precision.autocast
    with phase("evaluate"), torch.autocast(device, autocast, enabled=bool(autocast)):
        validation_loss = mean_loss(loop.model, rows, "validation", method.type)
    seen = loop.tokens_seen - recorder.tokens_before
    done = receipt.figures(loop.model, seen, phase.seconds["train_seconds"], computed, device)
    summary = _summary(loop, recorder, start) | {"validation_loss": validation_loss} | done
    with phase("save"):
        checkpoint = _save(job, loop.model, work, {"attention": kind})
    job.state.remove()
    return checkpoint, _report(job, decisions, recorder, summary | phase.seconds)


def _isolated(job: Job, loaded: Loaded, *, exact: bool) -> tuple[str, str]:
    """Prove that packed examples do not see each other; return the attention of which that is true, and the finding."""
    return proof.isolation(
        loaded.model,
        job.rows,
        batch_size=job.config.per_device_train_batch_size,
        exact=exact,
        may_change=job.load.attention == "auto" and job.load.s2_group_size_ratio is None,
    )


def _refuse_shared_rows(job: Job) -> None:
    if not job.family.packs and job.packed:
        raise RecipeError(
            f"method {job.method.type} puts virtual tokens in front of each row, so a row holds one example. Set "
            "tokenize.packing: false and train.per_device_train_batch_size: 1; accumulate gradients instead."
        )


def _loop(job: Job, loaded: Loaded, work: Path) -> SFTTrainer:
    """Attach what is trained, or go on with the adapter that the recipe continues, and make the training loop."""
    args = trainer.arguments(job.config, loaded.precision, work / "state")
    if job.continued:
        job.family.check_continues(job.continued, job.method, loaded.model)
        model = job.family.attach_saved(loaded.model, job.continued, trainable=True)
    else:
        model = job.family.attach(loaded.model, job.method, total_steps=job.num_steps, new_ids=loaded.new_ids)
    _hold_trained(model, loaded.precision.trained)
    alpha = job.config.neftune_noise_alpha
    loop = SFTTrainer(
        job.family,
        job.method,
        noise.Noise(model, alpha) if alpha else None,
        model=model,
        args=args,
        train_dataset=job.rows.splits["train"],
        data_collator=collate,
    )
    loop.add_callback(trainer.AfterStep(job.family, model))
    loop.kept, loop.keep = None if _keeps_no_state(job) else job.state, job.config.save_total_limit
    if loop.kept:
        loop.kept.remember("dtype", str(loaded.precision.autocast or loaded.precision.weights).removeprefix("torch."))
    return loop


def _levers(job: Job, loaded: Loaded, loop: SFTTrainer) -> Levers:
    """Switch on what makes a step fast, held against the plain model on a short row."""
    row = job.rows.splits["train"][0]
    lengths = [min(length, CHECKED_TOKENS) for length in row["lengths"][:2]]
    starts = [sum(row["lengths"][:i]) for i in range(len(lengths))]
    ids = [token for start, n in zip(starts, lengths, strict=True) for token in row["input_ids"][start : start + n]]
    inputs = collate([{"input_ids": ids, "labels": ids, "lengths": lengths}])
    inputs = {name: _to(value, loop.model.device) for name, value in inputs.items()}
    loop.model.train()
    selective, autocast = job.load.gradient_checkpointing == "selective", loaded.precision.autocast
    return apply(job.family, loop.model, job.config.levers, inputs, autocast, recomputes_parts=selective)


def _keeps_no_state(job: Job) -> bool:
    """Optimizers that step inside the backward pass keep their state there, out of reach of a checkpoint."""
    return not TRAITS[job.config.optim].keeps_state


def _held_as_before(job: Job) -> LoadStepConfig:
    """Keep the number format that a race chose when this training began: another would end in other weights."""
    before = job.state.told("dtype") if job.load.dtype == "auto" and job.state.latest() else None
    return job.load.model_copy(update={"dtype": before}) if before else job.load


def _hold_trained(model: Any, dtype: torch.dtype) -> None:
    """Give trained weights their precision: float32 beside frozen weights of 16 bits."""
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)


def _work_folder(job: Job) -> Path:
    key = digest(job.state.identity)
    work = state.folder("work") / f"train-{key[:32]}"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    return work


def _run(loop: SFTTrainer, job: Job, listeners: tuple[Listener, ...]) -> tuple[Recorder, str]:
    """Train to the end, from the last whole checkpoint where there is one; also return that in words."""
    from transformers import PrinterCallback

    loop.remove_callback(PrinterCallback)
    latest, went_on = _last_of(job) if loop.kept else None, ""
    if latest:
        went_on = f"went on from step {step_of(latest)} of {job.num_steps}"
        logger.warning("This training was begun before: it goes on from step %d.", step_of(latest))
    with progress.bar("training", job.num_steps) as advance, stopped_by_signals() as stop, _levers_of(loop):
        recorder = Recorder(advance, listeners, lambda: loop.tokens_seen, loop.history)
        loop.add_callback(recorder)
        loop.add_callback(Saving(job.config, stop))
        loop.train(resume_from_checkpoint=str(latest) if latest else None)
    if stop.asked and loop.state.global_step < job.num_steps:
        raise StoppedError(_stopped(job, loop, stop.asked))
    if loop.noise:
        loop.noise.remove()
    return recorder, went_on


@contextmanager
def _levers_of(loop: SFTTrainer) -> Iterator[None]:
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


def _stopped(job: Job, loop: SFTTrainer, name: str) -> str:
    done = f"The training was stopped by {name} after step {loop.state.global_step} of {job.num_steps}"
    if loop.kept is None:
        return f"{done}. {job.config.optim} keeps no state that can be saved, so it starts over next time."
    latest = job.state.latest()
    if latest is None or step_of(latest) != loop.state.global_step:
        have = f"goes on from step {step_of(latest)}" if latest else "starts over"
        return f"{done}; its state could not be saved, so it {have} next time."
    return f"{done}; its state is saved. Give the same command again to go on."


@torch.no_grad()
def mean_loss(model: Any, rows: Corpus, split: str, method: str = "full") -> float:
    """Return the mean cross entropy (nats) over the trained tokens of a split; NaN where it is empty."""
    model.eval()
    total, count = 0.0, 0
    for row in rows.splits[split]:
        inputs = {name: _to(value, model.device) for name, value in collate([row]).items()}
        loss, tokens = trainer.summed_loss(families[method], model, inputs)
        total, count = total + float(loss), count + tokens
    return total / count if count else float("nan")


def _to(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, torch.Tensor) else value


def _save(job: Job, model: Any, work: Path, facts: dict[str, Any]) -> Checkpoint:
    """Write the trained weights; nothing in the files names this machine."""
    shutil.rmtree(work / "state", ignore_errors=True)
    job.family.save(model, work, base_name=job.base_model.items[0].name)
    (work / "README.md").unlink(missing_ok=True)
    identity = {
        "base_model": job.base_model.content_hash(),
        "rows": job.rows.content_hash(),
        "tokenization": job.rows.identity,
        "load": job.load.model_dump(mode="json"),
        "method": job.method.model_dump(),
        "train": job.config.shaping(),
    }
    return Checkpoint(work, job.family.kind, identity, facts, disposable=True)


def _summary(loop: SFTTrainer, recorder: Recorder, start: float) -> dict[str, float]:
    trainable = sum(p.numel() for p in loop.model.parameters() if p.requires_grad)
    losses = [entry["loss"] for entry in recorder.history]
    return {
        "seconds": time.monotonic() - start,
        "tokens": float(loop.tokens_seen),
        "steps": float(loop.state.global_step),
        "first_loss": losses[0],
        "final_loss": sum(losses[-3:]) / len(losses[-3:]),
        "peak_memory_bytes": float(max(recorder.peak_memory_bytes, memory_bytes())),
        "parameters": float(loop.model.num_parameters()),
        "trainable_parameters": float(trainable),
    }


def _report(job: Job, decisions: dict[str, str], recorder: Recorder, summary: dict[str, float]) -> TrainingReport:
    environment = {name: version(name) for name in LIBRARIES} | {
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
        "threads": str(torch.get_num_threads()),
    }
    return TrainingReport(
        load=job.load.model_dump(mode="json"),
        method=job.method.model_dump(),
        train=job.config.model_dump(),
        decisions=decisions,
        history=recorder.history,
        summary=summary,
        environment=environment,
    )
