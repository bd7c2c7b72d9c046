"""Training outputs: the checkpoint, and the report with metrics, decisions and environment."""

import platform
import shutil
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tuneline.data.corpus import Corpus
from tuneline.data.tokenization import preference_rows
from tuneline.model import device, value_head
from tuneline.model.checkpoint import Checkpoint
from tuneline.model.methods import families
from tuneline.train import token_losses
from tuneline.train.collate import collate, move_to_device
from tuneline.train.job import TrainingJob
from tuneline.train.monitoring.recorder import MetricsRecorder, peak_memory
from tuneline.train.report import TrainingReport
from tuneline.train.trainer import StageTrainer

REPORTED_LIBRARIES = ("torch", "transformers", "peft", "accelerate")


@torch.no_grad()
def mean_loss(model: Any, rows: Corpus, split: str, method: str = "full") -> float:
    """Return the mean cross entropy (nats) over the trained tokens of a split; NaN if it is empty."""
    model.eval()
    total, count = 0.0, 0
    for row in rows.splits[split]:
        losses, _ = token_losses.token_losses(
            families[method], model, move_to_device(collate([preference_rows.flatten_row(row)]), model.device)
        )
        total, count = total + float(losses.sum()), count + len(losses)
    return total / count if count else float("nan")


def save_checkpoint(job: TrainingJob, loop: StageTrainer, work: Path, facts: dict[str, Any]) -> Checkpoint:
    """Write the trained weights; the files contain no paths of this machine."""
    shutil.rmtree(work / "state", ignore_errors=True)
    head = loop.objective.detach(loop.model)
    job.family.save(loop.model, work, base_name=job.base_model.items[0].name)
    if head:
        save_file(head, work / value_head.HEAD_FILE)
    (work / "README.md").unlink(missing_ok=True)
    identity = {
        "base_model": job.base_model.content_hash(),
        "rows": job.rows.content_hash(),
        "tokenization": job.rows.identity,
        "load": job.load.model_dump(mode="json"),
        "method": job.method.model_dump(),
        "train": job.config.weight_affecting_fields(),
    }
    return Checkpoint(work, job.family.kind, identity, facts, disposable=True)


def summarize_training(loop: StageTrainer, recorder: MetricsRecorder, start: float) -> dict[str, float]:
    """Return the metrics of the whole training; `start` is a value of `time.monotonic`."""
    trainable = sum(p.numel() for p in loop.model.parameters() if p.requires_grad)
    losses = [entry["loss"] for entry in recorder.history]
    return {
        "seconds": time.monotonic() - start,
        "tokens": float(loop.tokens_seen),
        "trained_tokens": float(loop.tokens_trained),
        "steps": float(loop.state.global_step),
        "first_loss": losses[0],
        "final_loss": sum(losses[-3:]) / len(losses[-3:]),
        "peak_memory_bytes": float(max(recorder.peak_memory_bytes, peak_memory())),
        "parameters": float(loop.model.num_parameters()),
        "trainable_parameters": float(trainable),
    }


def build_report(
    job: TrainingJob,
    decisions: dict[str, str],
    recorder: MetricsRecorder,
    samples: list[dict[str, Any]],
    summary: dict[str, float],
) -> TrainingReport:
    """Build the report that the tracker logs."""
    environment = {name: version(name) for name in REPORTED_LIBRARIES} | {
        "python": platform.python_version(),
        "device": device.device_name(),
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
        "threads": str(torch.get_num_threads()),
    }
    return TrainingReport(
        load=job.load.model_dump(mode="json"),
        method=job.method.model_dump(),
        train=job.config.model_dump(),
        decisions=decisions,
        history=recorder.history,
        samples=samples,
        summary=summary,
        environment=environment,
    )
