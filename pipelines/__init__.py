"""ZenML pipelines: wiring only. `zenml pipeline run sft_pipeline --config configs/<recipe>.yaml`."""

from pipelines.cpo import cpo_pipeline
from pipelines.dpo import dpo_pipeline
from pipelines.export import export_pipeline
from pipelines.grpo import grpo_pipeline
from pipelines.kto import kto_pipeline
from pipelines.orpo import orpo_pipeline
from pipelines.ppo import ppo_pipeline
from pipelines.pretrain import pretrain_pipeline
from pipelines.retrain import retrain_pipeline
from pipelines.rm import rm_pipeline
from pipelines.sft import sft_pipeline
from pipelines.simpo import simpo_pipeline

__all__ = [
    "cpo_pipeline",
    "dpo_pipeline",
    "export_pipeline",
    "grpo_pipeline",
    "kto_pipeline",
    "orpo_pipeline",
    "ppo_pipeline",
    "pretrain_pipeline",
    "retrain_pipeline",
    "rm_pipeline",
    "sft_pipeline",
    "simpo_pipeline",
]
