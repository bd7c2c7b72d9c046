"""Step: model and base model -> per-item scores of both."""

from typing import Annotated

from zenml import step
from zenml.config.cache_policy import CachePolicy

from materializers import REPORT
from steps.caching import library_source_hash
from tuneline.config.sections.evaluate import EvaluateStepConfig
from tuneline.data.corpus import Corpus
from tuneline.evaluation import environment, model_under_test, score
from tuneline.evaluation.report import Report
from tuneline.identity import Manifest
from tuneline.model import device as hardware
from tuneline.model import precision, verification
from tuneline.model.checkpoint import Checkpoint


def cache_key() -> str:
    """Return what decides the result besides the inputs: library source, package versions, hardware if it matters."""
    libraries = (*environment.GENERATION_PACKAGES, *environment.METRIC_PACKAGES, "lm-eval")
    modules = ("evaluation.score", "evaluation.report", "model.checkpoint", "model.verification", "data.corpus")
    device = f"{hardware.device_type()} {precision.inference_dtype('auto')}"
    return f"{library_source_hash(*modules, libraries=libraries)} {device}"


@step(cache_policy=CachePolicy(cache_func=f"{__name__}.cache_key"), output_materializers=REPORT)
def evaluate(
    model: Checkpoint,
    base_model: Manifest,
    tokenizer: Manifest,
    mixture: Corpus,
    benchmarks: Manifest,
    config: EvaluateStepConfig,
) -> Annotated[Report, "{stage}_report"]:
    """Score both models on the same items; stored scores are reused."""
    verification.check_manifests(base_model, tokenizer)
    before = model_under_test.base_model(base_model, tokenizer, config)
    after = model_under_test.trained_model(model, config)
    return score.report(before, after, tokenizer, mixture, benchmarks, config)
