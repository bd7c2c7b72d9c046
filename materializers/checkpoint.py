"""Store a model directory without reading it into memory, and without a second copy on a local store.

A scratch folder of the step is moved in, anything else is hard-linked. Beside the files lies an `MLmodel`, so that the
artifact's own folder is what the model registry points at.
"""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from zenml.enums import ArtifactType, VisualizationType
from zenml.metadata.metadata_types import MetadataType

from materializers.folders import FolderMaterializer, table_html
from tuneline.checksums import Checksums
from tuneline.identity import canonical_json
from tuneline.model import adapter_bundle
from tuneline.model.checkpoint import METADATA_FILE, NON_CONTENT_FILES, Checkpoint, compute_content_hash
from tuneline.tracking import flavor


class CheckpointMaterializer(FolderMaterializer):
    """`files/` as transformers or peft left it, `checkpoint.json`, `MLmodel`."""

    ASSOCIATED_TYPES: ClassVar[tuple[type[Any], ...]] = (Checkpoint,)
    ASSOCIATED_ARTIFACT_TYPE: ClassVar[ArtifactType] = ArtifactType.MODEL

    def write(self, data: Checkpoint, folder: Path) -> None:
        files = data.files()
        self._stored = replace(data, sha256=data.sha256 or compute_content_hash(data.kind, data.identity, files))
        self._bytes = data.num_bytes()
        about: dict[str, Any] = {"kind": data.kind, "identity": data.identity, "facts": data.facts}
        about |= {"sha256": self._stored.sha256, "files": files}
        _place(data.path, folder / flavor.FILES, move=data.disposable)
        (folder / METADATA_FILE).write_text(json.dumps(about, indent=1))
        if data.kind != "adapter" or adapter_bundle.is_adapter_bundle(folder / flavor.FILES):
            flavor.write_mlmodel(folder)

    def read(self, data_type: type[Checkpoint], folder: Path) -> Checkpoint:
        about = json.loads((folder / METADATA_FILE).read_text())
        about.pop("files", None)
        return Checkpoint(path=folder / flavor.FILES, **about)

    def extract_metadata(self, data: Checkpoint) -> dict[str, MetadataType]:
        plain: dict[str, MetadataType] = {"kind": data.kind, "bytes": self._bytes, "sha256": self._stored.sha256}
        return plain | {f"fact.{name}": value for name, value in data.facts.items()}

    def save_visualizations(self, data: Checkpoint) -> dict[str, VisualizationType]:
        facts = {"kind": data.kind, "bytes": self._bytes, **data.facts, **data.identity}
        rows = [{"what": name, "value": canonical_json(value)} for name, value in facts.items()]
        return {self.keep_text("checkpoint.html", table_html("Model directory", rows)): VisualizationType.HTML}

    def content_hash_of(self, data: Checkpoint) -> str:
        return self._stored.sha256

    def stored_content_hash(self, data: Checkpoint, sums: Checksums | None) -> str:
        files = sums.below(flavor.FILES, NON_CONTENT_FILES) if sums else data.files()
        return compute_content_hash(data.kind, data.identity, files)


def _place(source: Path, target: Path, *, move: bool) -> None:
    """Move a folder of ours; link the files of anybody else's, or copy them where links cannot be made."""
    if move:
        shutil.move(source, target)
        return
    try:
        shutil.copytree(source, target, copy_function=os.link)
    except (shutil.Error, OSError):
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(source, target)
