"""`zenml pipeline run sft_pipeline` resolves here: importing this module yields the pipeline itself.

ZenML takes a name without a dot as a module and wants a pipeline; a module may replace itself while it is imported.
"""

import sys

from pipelines.sft import sft_pipeline

sys.modules[__name__] = sft_pipeline  # type: ignore[assignment]
