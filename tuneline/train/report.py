"""What a training did: its history, its numbers, the machine it ran on. It travels beside the checkpoint."""

from typing import Any

from pydantic import BaseModel, ConfigDict


class TrainingReport(BaseModel):
    """Everything the tracker needs later, so that a cached training still shows in each run that uses it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    load: dict[str, Any]
    """How the base model was held."""

    method: dict[str, Any]
    train: dict[str, Any]
    decisions: dict[str, str]
    """Automatic choices with their reasons."""

    history: list[dict[str, float]]
    """An entry a step: `step`, `loss`, `learning_rate`, `grad_norm`, `tokens_per_second`, `memory_bytes`."""

    summary: dict[str, float]
    """`seconds`, also by phase; `tokens`, `flops`, `mfu`, `peak_memory_bytes`, `trainable_parameters`, losses, ..."""

    environment: dict[str, str]
    """Versions, device, threads, instruction set: what bitwise repetition depends on."""

    mlflow_run_id: str | None = None
    """Child run that holds the live curves."""
