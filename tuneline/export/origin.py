"""Where an exported model comes from, and what is known of it: carried beside its bytes."""

from pydantic import BaseModel, ConfigDict


class Origin(BaseModel):
    """What the export of a model tells of it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    """What the model is called: a registered model, a folder, a repository."""

    version: str = ""
    """Of a registered model: the number that an alias stood for."""

    content_hash: str = ""
    """Of a registered or trained model, as its version says."""

    source: str
    """Where it came from, in words."""

    licence: str = "unknown"
    card: str = ""
    """The model card that was written when it was registered, or nothing."""

    system: str | None = None
    """The default system message of its training data, if it is known."""

    mlflow_run_id: str = ""
    """The run that made it."""


class Delivery(BaseModel):
    """What became of an export: where it lies, and what was pushed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    folder: str
    """Of the artifact."""

    to: str = ""
    """Folder that it was laid into."""

    repo_id: str = ""
    commit: str = ""
    url: str = ""
    modelfile: str = ""
    """In a sentence: is there one, and how far it is proven."""

    facts: dict[str, str | int | float | bool | list[str]] = {}
