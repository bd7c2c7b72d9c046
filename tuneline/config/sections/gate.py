"""Promotion gate: target metrics that must improve, guard metrics that must not get worse, and preconditions.

A gate is part of a recipe (`registry.gate`), or a separate file that recipes reference: `registry.gate:
gates/strict.yaml`, relative to the recipe file. The file has the same keys.
"""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from tuneline.config.base import Config, ModelName


def _check_ascending(bounds: tuple[float, float]) -> tuple[float, float]:
    if not bounds[0] < bounds[1]:
        raise ValueError(
            f"expected [minimum, maximum] with minimum < maximum, got {list(bounds)}. Set [0, 1], for example."
        )
    return bounds


ScoreRange = Annotated[tuple[float, float], AfterValidator(_check_ascending)]


class TargetConfig(Config):
    """A metric that must improve."""

    metric: str
    """Metric in the report: of held-out rows, like `rougeL`, or of an exam, like `mmlu_accuracy`."""

    min_effect: float = Field(0.0, ge=0, le=1e6)
    """Required improvement: the confidence interval of the gain must lie above it. 0.01 is one point of ROUGE or
    accuracy."""

    score_range: ScoreRange | None = None
    """Minimum and maximum possible score of an item. Null uses 0 to 1 for text metrics and accuracies, and the observed
    range of both models for all others (likelihoods, rewards, custom metrics)."""


class GuardConfig(Config):
    """A metric that must not get worse by more than a margin (non-inferiority test)."""

    metric: str
    """Metric in the report: of held-out rows, like `rougeL`, or of an exam, like `mmlu_accuracy`."""

    margin: float = Field(gt=0, le=1e6)
    """Maximum tolerated loss. 0.02 is two points of ROUGE or accuracy."""

    score_range: ScoreRange | None = None
    """Minimum and maximum possible score of an item. Null uses 0 to 1 for text metrics and accuracies, and the observed
    range of both models for all others (likelihoods, rewards, custom metrics)."""


class PreconditionsConfig(Config):
    """Conditions that a model must meet before its scores are compared."""

    template_parity: bool = True
    """Require that the saved tokenizer and chat template are byte-identical to those used for the training rows."""

    max_kl: float | None = Field(None, gt=0, le=100)
    """Maximum mean KL divergence between merged model and adapter, in nats per token. Null uses
    `merge_adapter.max_kl`."""

    min_greedy_agreement: float = Field(0.9, ge=0, le=1)
    """Minimum fraction of positions at which merged model and adapter predict the same most likely token."""

    min_coverage: float = Field(0.001, ge=0, le=1)
    """Minimum fraction of training tokens with loss. Not checked for prompts, whose completions are sampled during
    training."""


MetricName = str
"""Name of a metric. The recipe checks that it is measured."""


DEFAULT_TARGETS = ("reward", "rougeL", "preference_accuracy", "signed_log_likelihood", "log_likelihood")
"""Default target of a gate without a metric: the first of these that is measured."""


class GateConfig(Config):
    """Conditions for promoting a new model (docs/decisions/0003 and 0014)."""

    metric: MetricName | None = None
    """Target metric, compared by its mean over held-out items. Null uses `rougeL` for conversations, `log_likelihood`
    (nats per token) for text, `preference_accuracy` (the chosen answer is more likely) for pairs,
    `signed_log_likelihood` for labeled completions, and `reward` for `ppo` and `grpo`."""

    min_gain: float = Field(0.0, ge=0, le=1e6)
    """Required gain: the lower bound of the gain's confidence interval must lie above it. 0.01 is one point of ROUGE,
    or 0.01 nats."""

    level: float = Field(0.95, gt=0.5, lt=1)
    """One-sided confidence level of each decision."""

    num_resamples: int = Field(5000, ge=1000, le=1_000_000)
    """Number of resamples for `test: bootstrap`."""

    targets: list[TargetConfig] = Field(default_factory=list)
    """Metrics that must improve. Replaces `metric` and `min_gain`."""

    targets_needed: Literal["all", "any"] = "all"
    """Whether all targets or any one target must improve."""

    guards: list[GuardConfig] = Field(default_factory=list)
    """Metrics that must not get worse by more than a margin."""

    correction: Literal["holm", "none"] = "holm"
    """Multiple testing correction for several targets: `holm` keeps `level` for all targets together, `none` for each
    target separately."""

    test: Literal["auto", "bootstrap", "mcnemar"] = "auto"
    """Significance test. `auto` uses the exact McNemar test for binary scores if any gain suffices, and a test for the
    mean of bounded scores otherwise. `bootstrap` detects smaller gains of targets, but promotes by chance more often
    than `level` allows if a few items lose a lot; guards never use it."""

    exclude_contaminated: bool = True
    """Exclude items that also occur in the training data. The report shows the scores with and without them."""

    preconditions: PreconditionsConfig = PreconditionsConfig()
    """Conditions that the model must meet before its scores are compared."""

    def with_default_metric(self, measured: Sequence[str]) -> "GateConfig":
        """Return the gate with a target. If it names none, the first of `DEFAULT_TARGETS` or of `measured` is used."""
        if self.targets or self.metric or not measured:
            return self
        metric = next((name for name in DEFAULT_TARGETS if name in measured), measured[0])
        return self.model_copy(update={"metric": metric})

    def all_targets(self) -> list[TargetConfig]:
        """Return the targets, including one given by `metric` and `min_gain`; empty if no metric is set."""
        if self.targets or self.metric is None:
            return self.targets
        return [TargetConfig(metric=self.metric, min_effect=self.min_gain)]

    def named_metrics(self) -> list[tuple[str, str]]:
        """Return the metrics that the gate names, each with its key."""
        metrics: list[tuple[str, str]] = [("metric", self.metric)] if self.metric and not self.targets else []
        metrics += [(f"targets.{i}.metric", target.metric) for i, target in enumerate(self.targets)]
        return metrics + [(f"guards.{i}.metric", guard.metric) for i, guard in enumerate(self.guards)]

    @model_validator(mode="after")
    def _targets_exclude_metric(self) -> "GateConfig":
        # Gates stored by earlier releases contain "rougeL", the former default.
        if self.targets and (self.metric not in (None, "rougeL") or self.min_gain):
            raise ValueError("metric and min_gain cannot be combined with targets. Remove metric and min_gain.")
        return self

    def find_duplicate(self) -> str:
        """Return an error message if a metric is listed twice, or an empty string."""
        targets, guards = ([entry.metric for entry in group] for group in (self.all_targets(), self.guards))
        if len(set(targets)) < len(targets) or len(set(guards)) < len(guards):
            return "a metric is listed twice among targets, or twice among guards. Remove one entry."
        if self.targets_needed == "all" and (both := sorted(set(targets) & set(guards))):
            return f"guards: {both[0]} is already a target that must improve. Remove the guard."
        return ""

    @model_validator(mode="after")
    def _metrics_are_unique(self) -> "GateConfig":
        if error := self.find_duplicate():
            raise ValueError(error)
        return self

    @model_validator(mode="after")
    def _any_target_is_corrected(self) -> "GateConfig":
        if self.targets_needed == "any" and self.correction == "none" and len(self.targets) > 1:
            raise ValueError(
                f"correction: none with targets_needed: any tests {len(self.targets)} targets at level {self.level} "
                "each, so chance promotions are more frequent. Set correction: holm."
            )
        return self

    @model_validator(mode="after")
    def _mcnemar_has_no_min_effect(self) -> "GateConfig":
        single = TargetConfig(metric=self.metric or "the target", min_effect=self.min_gain)
        for target in (self.targets or [single]) if self.test == "mcnemar" else ():
            if target.min_effect:
                raise ValueError(
                    f"test: mcnemar does not support min_effect, but {target.metric} requires a gain above "
                    f"{target.min_effect}. Set test: auto, or min_effect: 0."
                )
        return self


class RegisterConfig(Config):
    """Name of the registered model, and its promotion gate."""

    model_name: ModelName
    """Model name in the MLflow model registry."""

    gate: GateConfig = GateConfig()
    """Promotion gate."""
