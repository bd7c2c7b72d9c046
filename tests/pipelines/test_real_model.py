"""The SFT pipeline with the real small model and real rows; takes minutes."""

from pathlib import Path

import pytest
import yaml

from tests import tiny
from tuneline.model.load import load_model
from tuneline.tracking import registry
from tuneline.train import training_run
from tuneline.zenml_integration import tracker

pytestmark = [pytest.mark.zenml, pytest.mark.slow]
DEMO = Path(__file__).parents[2] / "configs" / "demo.yaml"


def test_300_rows_of_real_alpaca_data_lower_the_loss_on_held_out_rows(project, test_data):
    from pipelines import sft_pipeline
    from tuneline.runner.start import read_training_outcome

    recipe = yaml.safe_load(DEMO.read_text())["parameters"]["recipe"]
    path = str(test_data / "llamafactory" / "alpaca_en_demo.json")
    recipe |= {
        "sources": [{"name": "alpaca", "path": path, "format": "alpaca", "max_rows": 300}],
        "exams": [],
        "load": {**recipe.get("load", {}), "dtype": "float32"},  # for the tolerance of the last assertion on every CPU
        "merge": {"validation_fraction": 0.1},
        "tokenize": {"max_length": 768, "overlong": "drop"},
        "train": {**recipe["train"], "learning_rate": 2e-4, "max_steps": 16},
        "evaluate": {"max_new_tokens": 48, "max_items": 16, "batch_size": 16},
        "registry": {"model_name": "alpaca"},
    }
    config = tiny.write_config(project / "alpaca.yaml", recipe)

    run = sft_pipeline.with_options(config_path=str(config))()

    result = read_training_outcome(run)
    tracker.connect()
    assert registry.find_version("alpaca", result.decision.version).folder() == result.model_folder
    assert result.report.metrics()["rougeL"]["model"].num_items == 16
    rows = run.steps["tokenize_pack"].outputs["rows"][0].load()
    base = Path(run.steps["resolve"].outputs["base_model"][0].load().only().location)
    folders = (base, result.model_folder)
    before, after = (
        training_run.mean_loss(load_model(folder, attention="segment"), rows, "validation") for folder in folders
    )
    assert after < before
    assert after == pytest.approx(
        run.steps["train"].outputs["sft_training_report"][0].load().summary["validation_loss"], rel=1e-4
    ), "the registered model is the trained one"
