"""Export configs: source model, format and destination. Field names follow `transformers` and `huggingface_hub`."""

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
"""Values of `PARAMETER` in an Ollama Modelfile, in addition to `stop`, which is derived from the model."""


class RegisteredModel(Config):
    """A version in the model registry."""

    type: Literal["registered"]
    name: str = Field(max_length=256)
    """Name of the registered model."""

    version: str = Field("champion", max_length=255)
    """Version number or alias."""


class RunModel(Config):
    """The model that a pipeline run trained, registered or not."""

    type: Literal["run"]
    name: str = Field(max_length=255)
    """Name or id of the pipeline run."""


ExportSource = Annotated[
    RegisteredModel | RunModel | DirectoryModel | HubModel | CatalogueModel | GgufModel | WheelModel,
    Field(discriminator="type"),
]


class PushConfig(Config):
    """Repository on a model hub. Credentials come from `HF_TOKEN` or `hf auth login` and are never stored."""

    repo_id: OwnedRepoId
    """`owner/name`."""

    private: bool = True
    """Create the repository as private. An existing repository must already be private."""

    exist_ok: bool = True
    """Allow pushing to an existing repository. If false, an existing repository is an error."""

    revision: str = "main"
    """Branch to push to. Created if it does not exist."""

    commit_message: str | None = None
    """Commit message. If omitted, it contains the model's name and content hash."""


class ExportOptions(Config):
    """Format of the exported model."""

    dtype: Literal["keep", "float32", "bfloat16", "float16"] = "keep"
    """Data type of the weights. `keep` does not convert them."""

    max_shard_size: str | None = Field(None, pattern=r"^\d{1,9}(\.\d{1,9})?(KB|MB|GB)$")
    """Maximum size of a weight file, like 5GB. If omitted, files are not resharded."""

    max_kl: float = Field(1e-2, gt=0, le=100)
    """Maximum mean KL divergence between the model before and after the export, in nats per token, if weights are
    merged or rounded. The export fails if it is exceeded."""

    modelfile: Literal["exact", "limited", "none"] = "exact"
    """Ollama Modelfile. `exact` requires a chat template with an equivalent Ollama template; `limited` also accepts one
    that differs for texts with certain words, such as reasoning in earlier responses; `none` writes no Modelfile."""

    gguf: Literal["none", "f16", "q8_0", "q4_k_m"] = "none"
    """Also write a GGUF file for llama.cpp, with weights of this type. llama.cpp runs it to verify it, which needs the
    extra `llama-cpp`. The export fails if the architecture or tokenizer is not supported."""

    system: str | None = None
    """Default system message of the Modelfile. If omitted, that of the training data (`align.system`), if known."""

    parameters: dict[str, ParameterValue] = Field(default_factory=dict)
    """Additional Modelfile parameters, like `num_ctx: 8192`. They override the generation config."""

    trust_remote_code: bool = False
    """Execute Python code from the model's repository. Review it first."""

    allow_pickle: bool = False
    """Allow weights in pickle files as input. The export always writes safetensors."""

    @field_validator("parameters")
    @classmethod
    def _parameters_are_supported(cls, parameters: dict[str, int | float]) -> dict[str, int | float]:
        for name in parameters:
            if name not in MODELFILE_PARAMETERS:
                raise ValueError(
                    f"{name!r} is not a supported parameter.{did_you_mean(name, MODELFILE_PARAMETERS)} Supported: "
                    f"{', '.join(MODELFILE_PARAMETERS)}."
                )
        return parameters


class ExportStepConfig(ExportOptions):
    """Config of step `export`."""


class LocateConfig(Config):
    """Config of step `locate`: source model, chat template, and destinations to check."""

    model: ExportSource
    adapters: list[LocalPath] = Field(default_factory=list)
    template: TemplateName = "auto"
    template_arguments: TemplateArguments = Field(default_factory=dict)
    trust_remote_code: bool = False
    allow_pickle: bool = False
    to: LocalPath | None = None
    push: PushConfig | None = None


class PublishConfig(Config):
    """Config of step `publish`: the destination."""

    to: LocalPath | None = None
    push: PushConfig | None = None


class ExportRecipe(ExportOptions):
    """Export a model to a folder and optionally to a repository on a model hub."""

    stage: Literal["export"]
    model: ExportSource
    """Model to export: a registered version, a run's model, or a model from any other source."""

    adapters: list[LocalPath] = Field(default_factory=list)
    """Adapters to merge first, in order. Paths are relative to the recipe file. LlamaFactory:
    `adapter_name_or_path`."""

    template: TemplateName = "auto"
    """Chat template. `auto` keeps the model's own template. Otherwise the name of a built-in template or the path of a
    Jinja file."""

    template_arguments: TemplateArguments = Field(default_factory=dict)
    """Variables to set in the exported chat template, like `enable_thinking: false`."""

    to: LocalPath | None = None
    """Folder to write the export to, in addition to the artifact. Must be empty or contain an earlier export."""

    push: PushConfig | None = None
    """Repository on a model hub to push to."""

    @model_validator(mode="after")
    def _trained_model_has_no_adapters(self) -> "ExportRecipe":
        if self.adapters and self.model.type in ("registered", "run"):
            raise ValueError(
                f"adapters: not supported for model.type {self.model.type}, whose adapter is already merged. Remove "
                "adapters, or set model to the base model."
            )
        return self

    @model_validator(mode="after")
    def _trained_model_keeps_its_template(self) -> "ExportRecipe":
        if self.model.type in ("registered", "run") and (self.template != "auto" or self.template_arguments):
            raise ValueError(
                f"template: not supported for model.type {self.model.type}, which keeps the chat template of its "
                "training. Remove template and template_arguments."
            )
        return self

    def for_locate(self) -> LocateConfig:
        """Return the config of step `locate`."""
        return LocateConfig(**self.model_dump(include=set(LocateConfig.model_fields)))

    def for_export(self) -> ExportStepConfig:
        """Return the config of step `export`."""
        return ExportStepConfig(**self.model_dump(include=set(ExportOptions.model_fields)))

    def for_publish(self) -> PublishConfig:
        """Return the config of step `publish`."""
        return PublishConfig(to=self.to, push=self.push)

    def step_names(self) -> list[str]:
        """Return the names of the pipeline's steps, as used under `steps:` in a run configuration."""
        return ["locate", "export", "publish"]
