"""What a run starts from: the slice of the recipe that `resolve` sees."""

from pydantic import Field

from tuneline.config.base import Config, TemplateArguments, TemplateName
from tuneline.config.sections.evaluate import AnswersDtype
from tuneline.config.sections.exams import AnyExam
from tuneline.config.sections.load import LoadConfig
from tuneline.config.sections.method import Method
from tuneline.config.sections.model import ModelSource
from tuneline.config.sections.sources import SourceConfig


class ResolveConfig(Config):
    """What the run starts from; the slice that `resolve` sees."""

    model: ModelSource
    sources: list[SourceConfig]
    exams: list[AnyExam]
    model_name: str
    """Registered model whose champion must still be there."""

    template: TemplateName = "auto"
    """Chat template, as in the recipe."""

    template_arguments: TemplateArguments = Field(default_factory=dict)
    load: LoadConfig = LoadConfig()
    method: Method
    max_length: int
    reward_function: str | None = None
    """Function that judges answers, as in the recipe."""

    metrics: list[str] = Field(default_factory=list)
    """Metrics of the user's own, as in the recipe."""

    answers_dtype: AnswersDtype = "auto"
    """Type in which models answer, as in the recipe."""
