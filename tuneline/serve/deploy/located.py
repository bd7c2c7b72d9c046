"""A model on disk that can be served, before it is loaded."""

import shutil
from dataclasses import dataclass, field
from pathlib import Path

from tuneline.tracking.registry import Version


@dataclass(frozen=True)
class LocatedModel:
    """Files, identity and names of a model."""

    name: str
    """Resolved name: `demo/7` of a registered version, otherwise the name of the folder, file or repository."""

    folder: Path
    """Folder of the config and, except for a GGUF file, of the weights."""

    content_hash: str
    """Hash of weights, tokenizer and chat template, and of the default adapter."""

    description: str
    """Origin, for people: `registered model demo version 7 (champion)`."""

    created: int = 0
    """Unix time of the version, or of the newest file."""

    adapters: dict[str, Path] = field(default_factory=dict)
    """Adapters of the engine: name -> folder."""

    adapter: str | None = None
    """Adapter that answers requests that name none, if `MODEL` is an adapter."""

    base_name: str = ""
    """Name of the base model, if `MODEL` is an adapter."""

    gguf: Path | None = None
    """GGUF file, for engine `llama_cpp`."""

    tokenizer_folder: Path | None = None
    """Folder of the tokenizer and its chat template; default: `folder`."""

    version: Version | None = None
    """The registered version, if it is one."""

    is_reward_model: bool = False
    scratch: Path | None = None
    """Folder to delete when the model is no longer served."""

    def discard(self) -> None:
        """Delete the files that exist for this model only."""
        if self.scratch:
            shutil.rmtree(self.scratch, ignore_errors=True)
