"""A recipe: everything that one run needs, in one model per stage; each step gets its own slice."""

from typing import Literal

from pydantic import model_validator

from tuneline.config.base import Config
from tuneline.config.data import (
    AlignConfig,
    AlignPolicy,
    DataSection,
    ExamConfig,
    MergeConfig,
    SourceConfig,
    TokenizeConfig,
)
from tuneline.config.evaluate import EvaluateConfig, EvaluateStepConfig, ExamProtocol, RegisterConfig
from tuneline.config.model import ModelSource
from tuneline.config.train import MergeAdapterConfig, Method, TrainConfig

STEPS = ("merge", "tokenize_pack", "train", "merge_adapter", "evaluate", "register")


class ResolveConfig(Config):
    """What the run starts from; the slice that `resolve` sees."""

    model: ModelSource
    sources: list[SourceConfig]
    exams: list[ExamConfig]
    model_name: str
    """Registered model whose champion must still be there."""


class SFTRecipe(DataSection):
    """Supervised fine-tuning of one base model."""

    stage: Literal["sft"]
    """What is trained."""

    model: ModelSource
    """The base model."""

    align: AlignPolicy = AlignPolicy()
    merge: MergeConfig = MergeConfig()
    tokenize: TokenizeConfig = TokenizeConfig()
    method: Method
    """How the base model is adapted."""

    train: TrainConfig = TrainConfig()
    merge_adapter: MergeAdapterConfig = MergeAdapterConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    registry: RegisterConfig
    """Registry and gate."""

    @model_validator(mode="after")
    def _the_gate_needs_held_out_rows(self) -> "SFTRecipe":
        if self.merge.validation_fraction == 0:
            raise ValueError(
                "merge.validation_fraction is 0, so nothing would be held out, and no model could be judged. "
                "Hold out a share, like 0.1."
            )
        return self

    def for_resolve(self) -> ResolveConfig:
        """Return what `resolve` sees."""
        return ResolveConfig(
            model=self.model, sources=self.sources, exams=self.exams, model_name=self.registry.model_name
        )

    def for_align(self, source: SourceConfig) -> AlignConfig:
        """Return what `align` sees of one data set."""
        return AlignConfig(format=source.format, **self.align.model_dump())

    def for_evaluate(self) -> EvaluateStepConfig:
        """Return what `evaluate` sees."""
        exams = [ExamProtocol(name=exam.name, num_shots=exam.num_shots) for exam in self.exams]
        return EvaluateStepConfig(**self.evaluate.model_dump(), exams=exams)

    def step_names(self) -> list[str]:
        """Return the names of the pipeline's steps, as `steps:` in a run configuration uses them."""
        per_source = [f"{step}_{source.name}" for source in self.sources for step in ("ingest", "align")]
        return ["resolve", *per_source, *STEPS]
