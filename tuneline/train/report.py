"""What a training did: its history, its numbers, the machine it ran on. It travels beside the checkpoint."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


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

    samples: list[dict[str, Any]] = Field(default_factory=list)
    """Answers at evaluation points: `step`, `prompt`, `answer`."""

    summary: dict[str, float]
    """`seconds`, also by phase; `tokens`, `flops`, `mfu`, `peak_memory_bytes`, `train_memory_bytes` (the loop's peak
    beyond `memory_before_bytes`), `trainable_parameters`, losses, ..."""

    environment: dict[str, str]
    """Versions, device, threads, instruction set: what bitwise repetition depends on."""

    state: str | None = None
    """Name of the training state that is kept until this report and the checkpoint are stored."""

    mlflow_run_id: str | None = None
    """Child run that holds the live curves."""

    def samples_to_markdown(self) -> str:
        """Write the answers at evaluation points, prompt by prompt, so that one reads how they change."""
        parts = []
        for prompt in dict.fromkeys(sample["prompt"] for sample in self.samples):
            own = [sample for sample in self.samples if sample["prompt"] == prompt]
            said = "\n".join(f"- step {each['step']}: {each['answer']!r}" for each in own)
            parts.append(f"## {prompt.strip()}\n\n{said}\n")
        return "\n".join(parts)
