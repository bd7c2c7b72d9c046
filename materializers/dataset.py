"""Store a corpus as Arrow files, read memory-mapped and identified by a hash of their values."""

from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from zenml.enums import ArtifactType, VisualizationType
from zenml.metadata.metadata_types import MetadataType

from materializers.folders import MAX_CELL_CHARACTERS, FolderMaterializer
from tuneline.checksums import Checksums
from tuneline.data.corpus import Corpus
from tuneline.html import render
from tuneline.identity import canonical_json

PREVIEW_ROWS = 20


class CorpusMaterializer(FolderMaterializer):
    """One Arrow file per split, with the identity and the counts of the corpus."""

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
        return {self.write_visualization("preview.html", _page(data)): VisualizationType.HTML}


def _page(data: Corpus) -> str:
    """Return the preview of token sequences if there is one, or the first rows of each split."""
    if data.preview:
        from tuneline.data.tokenization import html_preview

        return html_preview.render_split(data.preview, data.counts["train"])
    tables = []
    for name, rows in data.splits.items():
        first = [rows[i] for i in range(min(PREVIEW_ROWS, rows.num_rows))]
        cells = [[str(value)[:MAX_CELL_CHARACTERS] for value in row.values()] for row in first]
        tables.append((f"{name}: the first {len(first)} of {rows.num_rows} rows", rows.column_names, cells))
    return render.page("table", title="Rows", tables=tables, texts=[("Counts", canonical_json(data.counts))])


def _small(value: Any) -> MetadataType:
    return value if isinstance(value, int | float | str) else canonical_json(value)
