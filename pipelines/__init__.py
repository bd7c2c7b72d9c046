"""ZenML pipelines: wiring only. `zenml pipeline run sft_pipeline --config configs/<recipe>.yaml`."""

from pipelines.pretrain import pretrain_pipeline
from pipelines.retrain import retrain_pipeline
from pipelines.sft import sft_pipeline

__all__ = ["pretrain_pipeline", "retrain_pipeline", "sft_pipeline"]
