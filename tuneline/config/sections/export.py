"""Configs of an export: which model, in which form, where it goes; names as in `transformers` and `huggingface_hub`."""

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from tuneline.config.base import Config, LocalPath, OwnedRepoId, TemplateArguments, TemplateName
from tuneline.config.sections.model import CatalogueModel, DirectoryModel, GgufModel, HubModel, WheelModel
from tuneline.errors import did_you_mean

ParameterValue = Annotated[int, Field(ge=-1e9, le=1e9)] | Annotated[float, Field(ge=-1e9, le=1e9)]

MODELFILE_PARAMETERS = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repeat_penalty",
    "repeat_last_n",
    "num_ctx",
    "num_predict",
    "seed",
)
"""What a Modelfile sets as `PARAMETER`, beside `stop`, which follows from the model."""


class RegisteredModel(Config):
    """A version in the model registry."""

    type: Literal["registered"]
    name: str = Field(max_length=256)
    """Registered model."""

    version: str = Field("champion", max_length=255)
    """Number or alias."""


class RunModel(Config):
    """What a run made, registered or not."""

    type: Literal["run"]
    name: str = Field(max_length=255)
    """Name or id of the pipeline run."""


ExportSource = Annotated[
    RegisteredModel | RunModel | DirectoryModel | HubModel | CatalogueModel | GgufModel | WheelModel,
    Field(discriminator="type"),
]


class PushConfig(Config):
    """A repository of a hub; who pushes is known by `HF_TOKEN` or `hf auth login`, and never written down."""

    repo_id: OwnedRepoId
    """`owner/name`."""

    private: bool = True
    """Only members see a repository that is made; one that is there must be so already."""

    exist_ok: bool = True
    """Add a commit to a repository that is there; false refuses it."""

    revision: str = "main"
    """Branch; made where it is missing."""

    commit_message: str | None = None
    """Left out, it names the model and its content hash."""


class ExportOptions(Config):
    """The form of the exported model; what the cached step sees."""

    dtype: Literal["keep", "float32", "bfloat16", "float16"] = "keep"
    """Precision of the weights; `keep` leaves them as they are."""

    max_shard_size: str | None = Field(None, pattern=r"^\d{1,9}(\.\d{1,9})?(KB|MB|GB)$")
    """Largest file of weights, like 5GB; left out, files stay as they are."""

    max_kl: float = Field(1e-2, gt=0, le=100)
    """Largest mean KL divergence (nats a token) between the model as it was and as it is exported, where its weights
    are merged or rounded; more is refused."""

    modelfile: Literal["exact", "limited", "none"] = "exact"
    """Ollama's Modelfile: `exact` refuses a chat template that has no equal there; `limited` accepts one that has, but
    for texts with words which it treats in a way of its own, like thoughts in earlier answers; `none` writes none."""

    system: str | None = None
    """Default system message of the Modelfile; left out, that of the training data (`align.system`), if it is known."""

    parameters: dict[str, ParameterValue] = Field(default_factory=dict)
    """More for the Modelfile, like `num_ctx: 8192`; over what the generation config says."""

    trust_remote_code: bool = False
    """Run Python code that comes with the model. Read it first."""

    allow_pickle: bool = False
    """Read weights in pickle files; they are written as safetensors, whatever they were."""

    @field_validator("parameters")
    @classmethod
    def _ollama_knows_the_parameters(cls, given: dict[str, int | float]) -> dict[str, int | float]:
        for name in given:
            if name not in MODELFILE_PARAMETERS:
                raise ValueError(
                    f"{name!r} is none that is set here.{did_you_mean(name, MODELFILE_PARAMETERS)} Set {', '.join(MODELFILE_PARAMETERS)}."
                )
        return given


class ExportStepConfig(ExportOptions):
    """What the step `export` sees."""


class LocateConfig(Config):
    """What the step `locate` sees: which model, with which chat template, and who must let it in."""

    model: ExportSource
    adapters: list[LocalPath] = Field(default_factory=list)
    template: TemplateName = "auto"
    template_arguments: TemplateArguments = Field(default_factory=dict)
    trust_remote_code: bool = False
    allow_pickle: bool = False
    to: LocalPath | None = None
    push: PushConfig | None = None


class PublishConfig(Config):
    """What the step `publish` sees: where the export goes."""

    to: LocalPath | None = None
    push: PushConfig | None = None


class ExportRecipe(ExportOptions):
    """A model in the form that others take, in a folder and, if asked for, in a repository of a hub."""

    stage: Literal["export"]
    model: ExportSource
    """What is exported: a registered version, a run's model, or a model of any other source."""

    adapters: list[LocalPath] = Field(default_factory=list)
    """Adapters to fold in first, in order; relative to the recipe's file. LlamaFactory calls this
    `adapter_name_or_path`."""

    template: TemplateName = "auto"
    """Chat template: `auto` keeps the model's own; or a name of the catalogue, or the path of a Jinja file."""

    template_arguments: TemplateArguments = Field(default_factory=dict)
    """Variables that the template is to see, like `enable_thinking: false`; they become part of it."""

    to: LocalPath | None = None
    """Folder to lay the export into, beside the artifact; it must be empty, or an earlier export."""

    push: PushConfig | None = None
    """Repository of a hub to push to."""

    @model_validator(mode="after")
    def _adapters_belong_to_base_models(self) -> "ExportRecipe":
        if self.adapters and self.model.type in ("registered", "run"):
            raise ValueError(
                f"adapters: a {self.model.type} model has its own adapter folded in. Leave adapters out, or name the "
                "base model as model."
            )
        return self

    @model_validator(mode="after")
    def _a_trained_model_keeps_its_template(self) -> "ExportRecipe":
        if self.model.type in ("registered", "run") and (self.template != "auto" or self.template_arguments):
            raise ValueError(
                f"template: a {self.model.type} model has the chat template that it was trained with. Leave template "
                "and template_arguments out."
            )
        return self

    def for_locate(self) -> LocateConfig:
        """Return what `locate` sees."""
        return LocateConfig(**self.model_dump(include=set(LocateConfig.model_fields)))

    def for_export(self) -> ExportStepConfig:
        """Return what `export` sees."""
        return ExportStepConfig(**self.model_dump(include=set(ExportOptions.model_fields)))

    def for_publish(self) -> PublishConfig:
        """Return what `publish` sees."""
        return PublishConfig(to=self.to, push=self.push)

    def step_names(self) -> list[str]:
        """Return the names of the pipeline's steps, as `steps:` in a run configuration uses them."""
        return ["locate", "export", "publish"]
