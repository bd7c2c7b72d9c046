"""The recipe of a training run: one config model per stage, from which each step receives its own slice."""

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
    """Fields and rules shared by the recipes of all training stages."""

    rows: ClassVar[Literal["pretrain", "sft", "preference", "kto", "prompt"]]
    """Kind of training rows the stage consumes."""

    metrics: ClassVar[tuple[str, ...]]
    """Metrics available on held-out rows. The first one is the gate's default target."""

    stage: str
    """Training stage, like `sft` or `dpo`."""

    model: ModelSource
    """Base model."""

    template: TemplateName = "auto"
    """Chat template. `auto` uses the model's own template or, if it has none, the template of its model family.
    Otherwise the name of a built-in template or the path of a Jinja file."""

    template_arguments: TemplateArguments = Field(default_factory=dict)
    """Variables passed to the chat template in training, evaluation and serving, like `enable_thinking: false`."""

    align: AlignPolicy = AlignPolicy()
    merge: MergeConfig = MergeConfig()
    tokenize: TokenizeConfig = TokenizeConfig()
    load: LoadConfig = LoadConfig()
    method: Method
    """How the base model is fine-tuned: full weights, frozen layers or an adapter."""

    train: TrainingConfig
    """Training arguments; each stage has its own model."""

    merge_adapter: MergeAdapterConfig = MergeAdapterConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    registry: RegisterConfig
    """Model registry name and promotion gate."""

    @model_validator(mode="after")
    def _gate_needs_held_out_rows(self) -> "Recipe":
        if self.merge.validation_fraction == 0:
            raise ValueError(
                "merge.validation_fraction is 0, so no rows would be held out and no model could be evaluated. "
                "Set a fraction, like 0.1."
            )
        return self

    @model_validator(mode="after")
    def _gate_metrics_are_measured(self) -> "Recipe":
        metrics = self.metric_names()
        for key, metric in self.registry.gate.named_metrics():
            if metric not in metrics:
                raise ValueError(
                    f"registry.gate.{key}: this recipe does not measure {metric} (stage {self.stage}, "
                    f"evaluate.metrics).{did_you_mean(metric, metrics)} Set {' or '.join(metrics)}."
                )
        if duplicate := self.gate().find_duplicate():
            raise ValueError(f"registry.gate: {duplicate}")
        return self

    def gate(self) -> GateConfig:
        """Return the gate config. If it names no metric, the stage's default metric is the target."""
        metrics = self.metric_names()
        return self.registry.gate.with_default_metric(self.metrics[:1] if self.metrics[0] in metrics else metrics)

    def metric_names(self) -> list[str]:
        """Return the names of all metrics that a gate can use, on held-out rows and on exams."""
        generated = {column for columns in GENERATION_METRICS.values() for column in columns}
        without_generation = [name for name in self.metrics if name not in generated]
        generation = self.evaluate.columns() if len(without_generation) < len(self.metrics) else []
        return [
            *generation,
            *without_generation,
            *(f"{exam.name}_{column}" for exam in self.exams for column in exam.columns()),
        ]

    @model_validator(mode="after")
    def _options_are_compatible(self) -> "Recipe":
        check_compatibility(self)
        return self

    @model_validator(mode="after")
    def _thinking_mask_needs_sft_rows(self) -> "Recipe":
        if self.rows in ("preference", "kto", "prompt") and self.tokenize.thinking == "mask":
            raise ValueError(
                f"tokenize.thinking is 'mask', but stage {self.stage} trains on entire answers, including <think> "
                "blocks. Remove tokenize.thinking."
            )
        return self

    @model_validator(mode="after")
    def _weights_need_interleaving(self) -> "Recipe":
        weighted = [source.name for source in self.sources if source.weight is not None]
        if weighted and self.merge.strategy == "concatenate":
            raise ValueError(
                f"sources: {weighted[0]} has a weight, but merge.strategy is 'concatenate', which does not sample by "
                "weight. Set merge.strategy to interleave_under or interleave_over, or remove weight."
            )
        return self

    @model_validator(mode="after")
    def _held_out_is_reserved(self) -> "Recipe":
        if any(exam.name == "held_out" for exam in self.exams):
            raise ValueError(
                "exams: the name 'held_out' is reserved for the held-out rows in the contamination report. "
                "Rename the exam."
            )
        return self

    def for_resolve(self) -> ResolveConfig:
        """Return the config of step `resolve`."""
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
        """Return the config of step `ingest` for one dataset."""
        return IngestConfig(name=source.name, max_rows=source.max_rows, sample=source.sample)

    def for_align(self, source: SourceConfig) -> AlignConfig:
        """Return the config of step `align` for one dataset."""
        return AlignConfig(
            format=source.format,
            columns=source.columns,
            tags=source.tags,
            format_hash=format_hash(source.format),
            loss_on="none" if self.rows != "sft" else "all" if self.tokenize.train_on == "all" else "assistant",
            **self.align.model_dump(),
        )

    def for_merge(self) -> MergeStepConfig:
        """Return the config of step `merge`."""
        gate = self.gate()
        return MergeStepConfig(
            **self.merge.model_dump(),
            shares=self.shares(),
            gate_sets=self.evaluation_sets(gate.named_metrics()) if gate.exclude_contaminated else [],
            max_items=self.evaluate.max_items,
        )

    def for_tokenize(self) -> TokenizeStepConfig:
        """Return the config of step `tokenize_pack`."""
        budgets = {source.name: source.max_tokens for source in self.sources if source.max_tokens}
        return TokenizeStepConfig(**self.tokenize.model_dump(), max_tokens=budgets, stage=self.rows)

    def for_load(self) -> LoadStepConfig:
        """Return the options with which a step loads the base model."""
        return LoadStepConfig(
            **self.load.model_dump(exclude={"adapters"}),
            max_length=self.tokenize.max_length,
            uses=[adapter.use for adapter in self.load.adapters if adapter.use != "reward"],
        )

    def for_train(self) -> TrainingConfig:
        """Return the config of step `train`.

        `objective` is set explicitly because step parameters only include fields that are set.
        """
        return self.train.model_copy(update={"objective": self.train.objective})

    def for_evaluate(self) -> EvaluateStepConfig:
        """Return the config of step `evaluate`."""
        fields = set(ExamProtocol.model_fields)
        exams = [ExamProtocol(**exam.model_dump(include=fields)) for exam in self.exams if isinstance(exam, ExamConfig)]
        window = self.tokenize.max_length
        custom_metrics = [name for name in self.evaluate.metrics if ":" in name]
        return EvaluateStepConfig(
            **self.evaluate.model_dump(),
            exams=exams,
            harness=[exam for exam in self.exams if isinstance(exam, LmEvalConfig)],
            window=window,
            load=self.load.plain(),
            metric_hashes={name: source_hash(name, METRICS_KEY) for name in custom_metrics},
        )

    def step_names(self) -> list[str]:
        """Return the names of the pipeline's steps, as used under `steps:` in a run configuration."""
        per_source = [f"{step}_{source.name}" for source in self.unique_sources() for step in ("ingest", "align")]
        return ["resolve", *per_source, *STEPS]


def compatibility_choice(recipe: Recipe) -> dict[str, str]:
    """Return the recipe's value on each axis of the compatibility table."""
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
    """Reject a recipe that combines incompatible options.

    Raises:
        ValueError: Options are incompatible, or the optimizer's package is not installed. The message lists every
            incompatible combination and its alternative.
    """
    choice = compatibility_choice(recipe)
    if incompatibilities := compatibility.table().incompatibilities(choice):
        raise ValueError(" ".join(_message(rule, choice) for rule in incompatibilities))
    optimizers.check_installed(recipe.train.optim)


def _message(rule: compatibility.Incompatibility, choice: compatibility.Choice) -> str:
    combination = " with ".join(f"{compatibility.RECIPE_KEYS[axis]} ({choice[axis]})" for axis in rule.when)
    return f"{combination} is not supported: {rule.reason}. {rule.fix}"
