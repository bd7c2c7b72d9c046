"""How our artifact types are stored in ZenML: once, by content, read where they lie.

Steps name them by import path, because ZenML opens its store when it is given the class.
"""

CORPUS = "materializers.dataset.CorpusMaterializer"
CHECKPOINT = "materializers.checkpoint.CheckpointMaterializer"
REPORT = "materializers.report.ReportMaterializer"
DOCUMENT = "materializers.document.DocumentMaterializer"
