"""ZenML materializers of our artifact types: stored once, identified by content, read in place.

Steps refer to them by import path, because ZenML opens its store when a step gets the class.
"""

CORPUS = "materializers.dataset.CorpusMaterializer"
CHECKPOINT = "materializers.checkpoint.CheckpointMaterializer"
REPORT = "materializers.report.ReportMaterializer"
DOCUMENT = "materializers.document.DocumentMaterializer"
