"""Fine-tuning library: plain functions and configs; only `tuneline.zenml_integration` and `tuneline.runner` know ZenML.

Importing it disables telemetry and noisy logs of its dependencies; environment variables that are set are kept.
"""

import logging
import os
import warnings

DEFAULT_ENVIRONMENT = {
    "ZENML_ANALYTICS_OPT_IN": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "DO_NOT_TRACK": "true",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}

for _name, _value in DEFAULT_ENVIRONMENT.items():
    os.environ.setdefault(_name, _value)

NOISY = ("torchao", "torch.utils._pytree", "bitsandbytes.backends.cpu.ops")
"""Loggers that warn about kernels that are not needed here."""

for _name in NOISY:
    logging.getLogger(_name).setLevel(logging.ERROR)

warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)  # accessed by peft
