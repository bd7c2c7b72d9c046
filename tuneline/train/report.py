"""The training report: history, metrics, decisions and environment of a training. Stored with the checkpoint."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class TrainingReport(BaseModel):
    """Everything that the tracker logs later, so that a cached training is logged in each run that uses it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    load: dict[str, Any]
    """Load options of the base model."""

    method: dict[str, Any]
    train: dict[str, Any]
    decisions: dict[str, str]
    """Automatic choices with their reasons."""

    history: list[dict[str, float]]
    """One entry per step: `step`, `loss`, `learning_rate`, `grad_norm`, `tokens_per_second`, `memory_bytes`."""

    samples: list[dict[str, Any]] = Field(default_factory=list)
    """Answers generated at each evaluation: `step`, `prompt`, `answer`."""

    summary: dict[str, float]
    """`seconds`, in total and per phase; `tokens`, `flops`, `mfu`, `peak_memory_bytes`, `train_memory_bytes` (peak of
    the training loop beyond `memory_before_bytes`), `trainable_parameters`, losses, ..."""

    environment: dict[str, str]
    """Versions, device, threads, instruction set: everything that bitwise reproducibility depends on."""

    state: str | None = None
    """Name of the training state that is kept until this report and the checkpoint are stored."""

    mlflow_run_id: str | None = None
    """Child run that holds the live curves."""

    def samples_to_markdown(self) -> str:
        """Return the generated answers, grouped by prompt and ordered by step."""
        sections = []
        for prompt in dict.fromkeys(sample["prompt"] for sample in self.samples):
            samples = [sample for sample in self.samples if sample["prompt"] == prompt]
            answers = "\n".join(f"- step {sample['step']}: {sample['answer']!r}" for sample in samples)
            sections.append(f"## {prompt.strip()}\n\n{answers}\n")
        return "\n".join(sections)
