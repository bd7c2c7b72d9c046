"""`zenml pipeline run retrain_pipeline` resolves here: importing this module yields the pipeline itself.

ZenML takes a name without a dot as a module and wants a pipeline; a module may replace itself while it is imported.
"""

import sys

from pipelines.retrain import retrain_pipeline

sys.modules[__name__] = retrain_pipeline  # type: ignore[assignment]
