"""Store an evaluation report: per-item scores as Parquet, pages as HTML and Markdown."""

import json
from pathlib import Path
from typing import Any, ClassVar

from zenml.enums import ArtifactType, VisualizationType
from zenml.metadata.metadata_types import MetadataType

from materializers.folders import FolderMaterializer
from tuneline.evaluation.html_report import to_html
from tuneline.evaluation.report import Report
from tuneline.evaluation.score_store import from_table, read_table, to_table, write_table
from tuneline.identity import digest

MODELS = ("base", "model")
METADATA_FILE = "report.json"
FIELDS = ("base_hash", "model_hash", "totals", "methods", "noise")
"""Fields of a report other than the scores."""


class ReportMaterializer(FolderMaterializer):
    """`base.parquet`, `model.parquet`, and `report.json` with the other fields."""

    ASSOCIATED_TYPES: ClassVar[tuple[type[Any], ...]] = (Report,)
    ASSOCIATED_ARTIFACT_TYPE: ClassVar[ArtifactType] = ArtifactType.DATA_ANALYSIS

    def write(self, data: Report, folder: Path) -> None:
        for who in MODELS:
            write_table(to_table(getattr(data, who)), folder / f"{who}.parquet")
        (folder / METADATA_FILE).write_text(
            json.dumps({name: getattr(data, name) for name in FIELDS}, ensure_ascii=False)
        )

    def read(self, data_type: type[Report], folder: Path) -> Report:
        base, model = (from_table(read_table(folder / f"{who}.parquet")) for who in MODELS)
        return Report(base=base, model=model, **json.loads((folder / METADATA_FILE).read_text()))

    def extract_metadata(self, data: Report) -> dict[str, MetadataType]:
        means: dict[str, MetadataType] = {
            f"{name}.{who}": interval.mean for name, parts in data.metrics().items() for who, interval in parts.items()
        }
        return means | {f"{name}.{who}": value for who, each in data.totals.items() for name, value in each.items()}

    def save_visualizations(self, data: Report) -> dict[str, VisualizationType]:
        return {
            self.write_visualization("report.html", to_html(data)): VisualizationType.HTML,
            self.write_visualization("report.md", data.to_markdown()): VisualizationType.MARKDOWN,
        }

    def content_hash_of(self, data: Report) -> str:
        rows = [
            [who, score.benchmark, score.item, score.output, score.metrics]
            for who in MODELS
            for score in getattr(data, who)
        ]
        return digest([data.base_hash, data.model_hash, rows, data.totals, data.methods, data.noise])
