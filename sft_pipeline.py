"""`zenml pipeline run sft_pipeline` resolves here: importing this module yields the pipeline itself.

ZenML takes a name without a dot as a module and wants a pipeline; a module may replace itself while it is imported.
The pipeline comes from beside `tuneline`, also where the working directory has a `pipelines/` of its own.
"""

import sys

from tuneline.runner import package_resolution

sft_pipeline = package_resolution.get_pipeline("sft_pipeline")
sys.modules[__name__] = sft_pipeline  # type: ignore[assignment]
