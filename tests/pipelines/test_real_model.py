"""The same line on the real small model and on real rows: minutes, not seconds."""

from pathlib import Path

import mlflow
import pytest
import yaml

from tests import tiny
from tuneline.tracking import registry
from tuneline.workflow import tracker

DEMO = Path(__file__).parents[2] / "configs" / "demo.yaml"
pytestmark = [pytest.mark.zenml, pytest.mark.slow]


def test_300_rows_of_real_alpaca_data_train_a_better_model(project, test_data):
    from pipelines import sft_pipeline
    from tuneline.workflow.start import outcome

    recipe = yaml.safe_load((__import__("pathlib").Path(__file__).parents[2] / "configs/demo.yaml").read_text())[
        "parameters"
    ]["recipe"]
    path = str(test_data / "llamafactory" / "alpaca_en_demo.json")
    recipe |= {
        "sources": [{"name": "alpaca", "path": path, "format": "alpaca", "max_rows": 300}],
        "exams": [],
        "merge": {"validation_fraction": 0.2},
        "tokenize": {"max_length": 768, "overlong": "drop"},
        "train": {**recipe["train"], "learning_rate": 5e-4, "max_steps": 12},
        "evaluate": {"max_new_tokens": 64, "max_items": 24, "batch_size": 24},
        "registry": {"model_name": "alpaca"},
    }
    config = tiny.write_config(project / "alpaca.yaml", recipe)

    result = outcome(sft_pipeline.with_options(config_path=str(config))())

    tracker.connect()
    version = registry.find("alpaca", result.decision.version)
    assert version.folder() == result.model_folder
    assert result.report.metrics()["rougeL"]["model"].num_items == 24
    run = mlflow.get_run(version.run_id)
    assert run.data.metrics["training.final_loss"] < run.data.metrics["training.first_loss"]
    assert run.data.metrics["training.validation_loss"] < 2.5
