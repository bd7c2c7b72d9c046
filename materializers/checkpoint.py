"""Store a model directory without loading it into memory and, on a local store, without a second copy.

The scratch folder of a step is moved, other files are hard-linked. The artifact has an `MLmodel` file, so that the
model registry can refer to the folder of the artifact.
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from zenml.enums import ArtifactType, VisualizationType
from zenml.metadata.metadata_types import MetadataType

from materializers.folders import MAX_CELL_CHARACTERS, FolderMaterializer
from tuneline import filesystem
from tuneline.checksums import Checksums
from tuneline.html import render
from tuneline.identity import canonical_json
from tuneline.model import adapter_bundle
from tuneline.model.checkpoint import METADATA_FILE, NON_CONTENT_FILES, Checkpoint, compute_content_hash
from tuneline.tracking import flavor


class CheckpointMaterializer(FolderMaterializer):
    """`files/` as transformers or peft wrote them, `checkpoint.json`, `MLmodel`."""

    ASSOCIATED_TYPES: ClassVar[tuple[type[Any], ...]] = (Checkpoint,)
    ASSOCIATED_ARTIFACT_TYPE: ClassVar[ArtifactType] = ArtifactType.MODEL

    def write(self, data: Checkpoint, folder: Path) -> None:
        files = data.files()
        self._stored = replace(data, sha256=data.sha256 or compute_content_hash(data.kind, data.identity, files))
        self._bytes = data.num_bytes()
        metadata: dict[str, Any] = {"kind": data.kind, "identity": data.identity, "facts": data.facts}
        metadata |= {"sha256": self._stored.sha256, "files": files}
        _place(data.path, folder / flavor.FILES, move=data.disposable)
        (folder / METADATA_FILE).write_text(json.dumps(metadata, indent=1))
        if data.kind != "adapter" or adapter_bundle.is_adapter_bundle(folder / flavor.FILES):
            flavor.write_mlmodel(folder)

    def read(self, data_type: type[Checkpoint], folder: Path) -> Checkpoint:
        metadata = json.loads((folder / METADATA_FILE).read_text())
        metadata.pop("files", None)
        return Checkpoint(path=folder / flavor.FILES, **metadata)

    def extract_metadata(self, data: Checkpoint) -> dict[str, MetadataType]:
        plain: dict[str, MetadataType] = {"kind": data.kind, "bytes": self._bytes, "sha256": self._stored.sha256}
        return plain | {f"fact.{name}": value for name, value in data.facts.items()}

    def save_visualizations(self, data: Checkpoint) -> dict[str, VisualizationType]:
        facts = {"kind": data.kind, "bytes": self._bytes, **data.facts, **data.identity}
        rows = [(name, canonical_json(value)[:MAX_CELL_CHARACTERS]) for name, value in facts.items()]
        page = render.page("table", title="Model directory", tables=[("", ["name", "value"], rows)], texts=[])
        return {self.write_visualization("checkpoint.html", page): VisualizationType.HTML}

    def content_hash_of(self, data: Checkpoint) -> str:
        return self._stored.sha256

    def stored_content_hash(self, data: Checkpoint, sums: Checksums | None) -> str:
        files = sums.below(flavor.FILES, NON_CONTENT_FILES) if sums else data.files()
        return compute_content_hash(data.kind, data.identity, files)


def _place(source: Path, target: Path, *, move: bool) -> None:
    """Move a scratch folder; link the files of any other folder, or copy them if links are not supported."""
    if move:
        shutil.move(source, target)
        return
    shutil.copytree(source, target, copy_function=filesystem.link_or_copy)
