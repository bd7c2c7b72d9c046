"""A recipe: everything that one run needs, in one model per stage; each step gets its own slice."""

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from tuneline.config.base import TemplateArguments, TemplateName
from tuneline.config.sections.data import DataSection, MergeConfig, MergeStepConfig, TokenizeConfig, TokenizeStepConfig
from tuneline.config.sections.evaluate import (
    GENERATION_METRICS,
    METRICS_KEY,
    EvaluateConfig,
    EvaluateStepConfig,
    ExamProtocol,
)
from tuneline.config.sections.exams import ExamConfig
from tuneline.config.sections.gate import GateConfig, RegisterConfig
from tuneline.config.sections.lm_eval import LmEvalConfig
from tuneline.config.sections.load import LoadConfig, LoadStepConfig
from tuneline.config.sections.method import Method
from tuneline.config.sections.model import ModelSource
from tuneline.config.sections.resolve import ResolveConfig
from tuneline.config.sections.sources import AlignConfig, AlignPolicy, IngestConfig, SourceConfig
from tuneline.config.training import optimizers
from tuneline.config.training.base import MergeAdapterConfig, TrainingConfig
from tuneline.config.validation import compatibility
from tuneline.config.validation.user_code import format_hash, source_hash
from tuneline.errors import did_you_mean

STEPS = ("merge", "tokenize_pack", "train", "merge_adapter", "evaluate", "register")


class Recipe(DataSection):
    """What the recipes of all stages have in common."""

    rows: ClassVar[Literal["pretrain", "sft", "preference", "kto", "prompt"]]
    """What the training rows are made for."""

    metrics: ClassVar[tuple[str, ...]]
    """What held-out rows can be judged by; the first is what a gate asks for by itself."""

    stage: str
    """What is trained."""

    model: ModelSource
    """The base model."""

    template: TemplateName = "auto"
    """Chat template: `auto` takes the model's own, or, where it has none, the one of its family; or a name of the
    catalogue, or the path of a Jinja file."""

    template_arguments: TemplateArguments = Field(default_factory=dict)
    """Variables that the template sees in training, evaluation and serving alike, like `enable_thinking: false`."""

    align: AlignPolicy = AlignPolicy()
    merge: MergeConfig = MergeConfig()
    tokenize: TokenizeConfig = TokenizeConfig()
    load: LoadConfig = LoadConfig()
    method: Method
    """How the base model is adapted."""

    train: TrainingConfig
    """The optimisation; each stage has its own."""

    merge_adapter: MergeAdapterConfig = MergeAdapterConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    registry: RegisterConfig
    """Registry and gate."""

    @model_validator(mode="after")
    def _the_gate_needs_held_out_rows(self) -> "Recipe":
        if self.merge.validation_fraction == 0:
            raise ValueError(
                "merge.validation_fraction is 0, so nothing would be held out, and no model could be judged. "
                "Hold out a share, like 0.1."
            )
        return self

    @model_validator(mode="after")
    def _the_gate_asks_for_what_is_measured(self) -> "Recipe":
        measured = self.measured()
        for key, metric in self.registry.gate.asked():
            if metric not in measured:
                raise ValueError(
                    f"registry.gate.{key}: this recipe does not measure {metric} (stage {self.stage}, "
                    f"evaluate.metrics).{did_you_mean(metric, measured)} Set {' or '.join(measured)}."
                )
        if told := self.gate().repeated():
            raise ValueError(f"registry.gate: {told}")
        return self

    def gate(self) -> GateConfig:
        """Return the gate; where it names no metric, it asks for what the stage is judged by."""
        measured = self.measured()
        return self.registry.gate.with_default_metric(self.metrics[:1] if self.metrics[0] in measured else measured)

    def measured(self) -> list[str]:
        """Return the names of all metrics that a gate can ask for: of held-out rows, and of exams."""
        generated = {column for columns in GENERATION_METRICS.values() for column in columns}
        plain = [name for name in self.metrics if name not in generated]
        answers = self.evaluate.columns() if len(plain) < len(self.metrics) else []
        return [*answers, *plain, *(f"{exam.name}_{column}" for exam in self.exams for column in exam.columns())]

    @model_validator(mode="after")
    def _choices_go_together(self) -> "Recipe":
        check_compatibility(self)
        return self

    @model_validator(mode="after")
    def _answers_of_pairs_are_trained_whole(self) -> "Recipe":
        if self.rows in ("preference", "kto", "prompt") and self.tokenize.thinking == "mask":
            raise ValueError(
                f"tokenize.thinking is 'mask', and stage {self.stage} judges answers as a whole, with their thoughts. "
                "Leave it out."
            )
        return self

    @model_validator(mode="after")
    def _weights_need_interleaving(self) -> "Recipe":
        weighted = [source.name for source in self.sources if source.weight is not None]
        if weighted and self.merge.strategy == "concatenate":
            raise ValueError(
                f"sources: {weighted[0]} has a weight, and merge.strategy is 'concatenate', which draws nothing by "
                "weight. Set merge.strategy to interleave_under or interleave_over, or leave weight out."
            )
        return self

    @model_validator(mode="after")
    def _no_exam_is_called_held_out(self) -> "Recipe":
        if any(exam.name == "held_out" for exam in self.exams):
            raise ValueError(
                "exams: 'held_out' is the name of the held-out rows where contamination is counted. "
                "Give the exam another name."
            )
        return self

    def for_resolve(self) -> ResolveConfig:
        """Return what `resolve` sees."""
        return ResolveConfig(
            model=self.model,
            sources=self.unique_sources(),
            exams=self.exams,
            model_name=self.registry.model_name,
            template=self.template,
            template_arguments=self.template_arguments,
            load=self.load,
            method=self.method,
            max_length=self.tokenize.max_length,
            metrics=[name for name in self.evaluate.metrics if ":" in name],
            answers_dtype=self.evaluate.dtype,
        )

    def for_ingest(self, source: SourceConfig) -> IngestConfig:
        """Return what `ingest` sees of one data set."""
        return IngestConfig(name=source.name, max_rows=source.max_rows, sample=source.sample)

    def for_align(self, source: SourceConfig) -> AlignConfig:
        """Return what `align` sees of one data set."""
        return AlignConfig(
            format=source.format,
            columns=source.columns,
            tags=source.tags,
            format_hash=format_hash(source.format),
            loss_on="none" if self.rows != "sft" else "all" if self.tokenize.train_on == "all" else "assistant",
            **self.align.model_dump(),
        )

    def for_merge(self) -> MergeStepConfig:
        """Return what `merge` sees."""
        gate = self.gate()
        return MergeStepConfig(
            **self.merge.model_dump(),
            shares=self.shares(),
            judged=self.evaluation_sets(gate.asked()) if gate.exclude_contaminated else [],
            max_items=self.evaluate.max_items,
        )

    def for_tokenize(self) -> TokenizeStepConfig:
        """Return what `tokenize_pack` sees."""
        budgets = {source.name: source.max_tokens for source in self.sources if source.max_tokens}
        return TokenizeStepConfig(**self.tokenize.model_dump(), max_tokens=budgets, stage=self.rows)

    def for_load(self) -> LoadStepConfig:
        """Return how a step loads the base model."""
        return LoadStepConfig(
            **self.load.model_dump(exclude={"adapters"}),
            max_length=self.tokenize.max_length,
            uses=[adapter.use for adapter in self.load.adapters if adapter.use != "reward"],
        )

    def for_train(self) -> TrainingConfig:
        """Return what `train` sees; what is minimised is written out, as a step's parameters keep set fields only."""
        return self.train.model_copy(update={"objective": self.train.objective})

    def for_evaluate(self) -> EvaluateStepConfig:
        """Return what `evaluate` sees."""
        kept = set(ExamProtocol.model_fields)
        exams = [ExamProtocol(**exam.model_dump(include=kept)) for exam in self.exams if isinstance(exam, ExamConfig)]
        window = self.tokenize.max_length
        own = [name for name in self.evaluate.metrics if ":" in name]
        return EvaluateStepConfig(
            **self.evaluate.model_dump(),
            exams=exams,
            harness=[exam for exam in self.exams if isinstance(exam, LmEvalConfig)],
            window=window,
            load=self.load.plain(),
            metric_hashes={name: source_hash(name, METRICS_KEY) for name in own},
        )

    def step_names(self) -> list[str]:
        """Return the names of the pipeline's steps, as `steps:` in a run configuration uses them."""
        per_source = [f"{step}_{source.name}" for source in self.unique_sources() for step in ("ingest", "align")]
        return ["resolve", *per_source, *STEPS]


def compatibility_choice(recipe: Recipe) -> dict[str, str]:
    """Return the value that a recipe takes on each axis."""
    load, train = recipe.load, recipe.train
    batched = train.per_device_train_batch_size > 1
    return {
        "stage": recipe.stage,
        "method": compatibility.method_variant(recipe.method),
        "quantization": load.quantization.type if load.quantization else "none",
        "dtype": load.dtype,
        "attention": load.attention,
        "s2": "on" if load.s2_group_size_ratio else "off",
        "rows": "packed" if recipe.tokenize.packing else "batched" if batched else "alone",
        "gradient_checkpointing": load.gradient_checkpointing,
        "vocabulary": "extended" if load.new_tokens or load.new_special_tokens else "as_it_is",
        "start": "random" if load.train_from_scratch else "trained",
        "optimizer": train.optim,
        "kernels": load.kernels,
        "noise": "on" if train.neftune_noise_alpha else "off",
    }


def check_compatibility(recipe: Recipe) -> None:
    """Refuse a recipe whose choices do not go together.

    Raises:
        ValueError: Every combination that cannot work, and what to set instead; a library of the optimizer is missing.
    """
    choice = compatibility_choice(recipe)
    if found := compatibility.table().incompatibilities(choice):
        raise ValueError(" ".join(_sentence(each, choice) for each in found))
    optimizers.check_installed(recipe.train.optim)


def _sentence(refusal: compatibility.Incompatibility, choice: compatibility.Choice) -> str:
    asked = " with ".join(f"{compatibility.RECIPE_KEYS[axis]} ({choice[axis]})" for axis in refusal.when)
    return f"{asked} cannot work: {refusal.because}. {refusal.instead}"
