"""Store small documents as JSON: manifests, reports, decisions, exports."""

from pathlib import Path
from typing import Any, ClassVar

from zenml.enums import ArtifactType, VisualizationType
from zenml.metadata.metadata_types import MetadataType

from materializers.folders import FolderMaterializer
from tuneline.export.origin import Delivery, Origin
from tuneline.identity import Manifest, digest
from tuneline.tracking import html_reports
from tuneline.tracking.decision import Decision
from tuneline.train import html_report as training_pages
from tuneline.train.report import TrainingReport

Document = Manifest | TrainingReport | Decision | Origin | Delivery
FILE = "document.json"


class DocumentMaterializer(FolderMaterializer):
    """One JSON file."""

    ASSOCIATED_TYPES: ClassVar[tuple[type[Any], ...]] = (Manifest, TrainingReport, Decision, Origin, Delivery)
    ASSOCIATED_ARTIFACT_TYPE: ClassVar[ArtifactType] = ArtifactType.DATA_ANALYSIS

    def write(self, data: Document, folder: Path) -> None:
        (folder / FILE).write_text(data.model_dump_json(indent=1), encoding="utf-8")

    def read(self, data_type: type[Document], folder: Path) -> Document:
        return data_type.model_validate_json((folder / FILE).read_bytes())

    def extract_metadata(self, data: Document) -> dict[str, MetadataType]:
        match data:
            case Manifest():
                sources: dict[str, MetadataType] = {item.name: item.source for item in data.items}
                size = sum(file.size for item in data.items for file in item.files)
                return {"sha256": data.content_hash(), "bytes": size, **sources}
            case TrainingReport():
                return dict(data.summary)
            case Decision():
                return {"version": data.version, "promoted": data.promoted, "sentence": data.sentence}
            case Origin():
                return {"source": data.source, "content_hash": data.content_hash, "licence": data.licence}
            case Delivery():
                return {"folder": data.folder, "to": data.to, "commit": data.commit, "url": data.url}

    def save_visualizations(self, data: Document) -> dict[str, VisualizationType]:
        if isinstance(data, Decision):
            return {
                self.write_visualization("decision.html", html_reports.decision_page(data)): VisualizationType.HTML,
                self.write_visualization("decision.md", data.to_markdown()): VisualizationType.MARKDOWN,
            }
        if isinstance(data, TrainingReport):
            return {self.write_visualization("training.html", training_pages.to_html(data)): VisualizationType.HTML}
        page = f"```json\n{data.model_dump_json(indent=1)}\n```\n"
        return {self.write_visualization("document.md", page): VisualizationType.MARKDOWN}

    def content_hash_of(self, data: Document) -> str:
        return data.content_hash() if isinstance(data, Manifest) else digest(data.model_dump(mode="json"))
