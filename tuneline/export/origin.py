"""Origin of an exported model and result of its delivery."""

from pydantic import BaseModel, ConfigDict


class Origin(BaseModel):
    """Origin of an exported model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    """Name of the registered model, folder or repository."""

    version: str = ""
    """Version number of a registered model; an alias is resolved."""

    content_hash: str = ""
    """Content hash of a registered or trained model."""

    source: str
    """Description of the source."""

    licence: str = "unknown"
    card: str = ""
    """Model card from the registration, or an empty string."""

    system: str | None = None
    """Default system message of the training data, if known."""

    mlflow_run_id: str = ""
    """MLflow run that trained the model."""


class Delivery(BaseModel):
    """Result of an export: folder and pushed commit."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    folder: str
    """Folder of the artifact."""

    to: str = ""
    """Folder that the export was copied to."""

    repo_id: str = ""
    commit: str = ""
    url: str = ""
    modelfile: str = ""
    """Whether there is a Modelfile, and the result of its verification."""

    facts: dict[str, str | int | float | bool | list[str]] = {}
