"""Store a corpus: Arrow written once where it stays, read memory-mapped, known by a hash of its values."""

from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any, ClassVar

from zenml.enums import ArtifactType, VisualizationType
from zenml.metadata.metadata_types import MetadataType

from materializers.folders import FolderMaterializer, table_html
from tuneline.checksums import Checksums
from tuneline.data.corpus import Corpus
from tuneline.identity import canonical_json

PREVIEW_ROWS = 20


class CorpusMaterializer(FolderMaterializer):
    """One Arrow file a split, with what the corpus says of itself."""

    ASSOCIATED_TYPES: ClassVar[tuple[type[Any], ...]] = (Corpus,)
    ASSOCIATED_ARTIFACT_TYPE: ClassVar[ArtifactType] = ArtifactType.DATA

    def write(self, data: Corpus, folder: Path) -> None:
        data.save(folder)

    def read(self, data_type: type[Corpus], folder: Path) -> Corpus:
        return replace(Corpus.load(folder), folder=folder)

    def content_hash_of(self, data: Corpus) -> str:
        return data.content_hash()

    def stored_content_hash(self, data: Corpus, sums: Checksums | None) -> str:
        return sums.content_hash if sums else data.content_hash()

    def extract_metadata(self, data: Corpus) -> dict[str, MetadataType]:
        size = sum(rows.data.nbytes for rows in data.splits.values())
        plain: dict[str, MetadataType] = {"rows": dict(data.num_rows()), "bytes": size}
        return plain | {f"count.{name}": _small(value) for name, value in data.counts.items()}

    def save_visualizations(self, data: Corpus) -> dict[str, VisualizationType]:
        if data.preview_html:
            return {self.keep_text("preview.html", data.preview_html): VisualizationType.HTML}
        pages = []
        for name, rows in data.splits.items():
            first = [rows[i] for i in range(min(PREVIEW_ROWS, rows.num_rows))]
            pages.append(table_html(f"{name}: the first {len(first)} of {rows.num_rows} rows", first))
        counts = f"<h1>Counts</h1><pre>{escape(canonical_json(data.counts))}</pre>"
        return {self.keep_text("preview.html", "".join([*pages, counts])): VisualizationType.HTML}


def _small(value: Any) -> MetadataType:
    return value if isinstance(value, int | float | str) else canonical_json(value)
