"""Step: model and base model -> scores of both, item by item."""

from typing import Annotated

from zenml import step
from zenml.config.cache_policy import CachePolicy

from materializers import REPORT
from steps.caching import code_behind
from tuneline.config.sections.evaluate import EvaluateStepConfig
from tuneline.data.corpus import Corpus
from tuneline.evaluation import model_under_test, score, setting
from tuneline.evaluation.report import Report
from tuneline.identity import Manifest
from tuneline.model import device as hardware
from tuneline.model import precision, verification
from tuneline.model.checkpoint import Checkpoint


def watched() -> str:
    """What the cache key sees beside this step."""
    libraries = (*setting.ANSWERING, *setting.SCORING, "lm-eval")
    modules = ("evaluation.score", "evaluation.report", "model.checkpoint", "model.verification", "data.corpus")
    device = f"{hardware.kind()} {precision.for_answers('auto')}"
    return f"{code_behind(*modules, libraries=libraries)} {device}"


@step(cache_policy=CachePolicy(cache_func=f"{__name__}.watched"), output_materializers=REPORT)
def evaluate(
    model: Checkpoint,
    base_model: Manifest,
    tokenizer: Manifest,
    mixture: Corpus,
    benchmarks: Manifest,
    config: EvaluateStepConfig,
) -> Annotated[Report, "{stage}_report"]:
    """Ask both models the same questions; answers that are known already are not asked for again."""
    verification.check(base_model, tokenizer)
    before = model_under_test.base(base_model, tokenizer, config)
    after = model_under_test.trained(model, config)
    return score.report(before, after, tokenizer, mixture, benchmarks, config)
