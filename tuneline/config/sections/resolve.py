"""Config of step `resolve`: the models, datasets and exams of a run."""

from pydantic import Field

from tuneline.config.base import Config, TemplateArguments, TemplateName
from tuneline.config.sections.evaluate import AnswersDtype
from tuneline.config.sections.exams import AnyExam
from tuneline.config.sections.load import LoadConfig
from tuneline.config.sections.method import Method
from tuneline.config.sections.model import ModelSource
from tuneline.config.sections.sources import SourceConfig


class ResolveConfig(Config):
    """Config of step `resolve`: the models, datasets and exams of a run."""

    model: ModelSource
    sources: list[SourceConfig]
    exams: list[AnyExam]
    model_name: str
    """Registered model whose champion version must still be available."""

    template: TemplateName = "auto"
    """Chat template, as in the recipe."""

    template_arguments: TemplateArguments = Field(default_factory=dict)
    load: LoadConfig = LoadConfig()
    method: Method
    max_length: int
    reward_function: str | None = None
    """Reward function, as in the recipe."""

    metrics: list[str] = Field(default_factory=list)
    """Custom metrics, as in the recipe."""

    answers_dtype: AnswersDtype = "auto"
    """Data type for generation, as in the recipe."""
