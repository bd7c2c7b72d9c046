"""LlamaFactory configurations run unmodified."""

import json

import pytest
import yaml
from typer.testing import CliRunner

from tests import tiny
from tuneline.cli.app import app

pytestmark = pytest.mark.zenml


def test_a_llamafactory_file_trains_and_registers_a_model(project):
    tiny.write_jsonl(project / "data" / "rows.jsonl", tiny.alpaca_rows(60))
    (project / "data" / "dataset_info.json").write_text(json.dumps({"rows": {"file_name": "rows.jsonl"}}))
    config = {
        "model_name_or_path": "model",
        "stage": "sft",
        "do_train": True,
        "finetuning_type": "lora",
        "dataset": "rows",
        "template": "chatml",
        "cutoff_len": 128,
        "val_size": 0.3,
        "output_dir": "saves/tiny/lora",
        "max_steps": 2,
        "max_new_tokens": 4,
    }
    (project / "llamafactory.yaml").write_text(yaml.safe_dump(config))

    result = CliRunner().invoke(app, ["run", "llamafactory.yaml"])

    assert result.exit_code == 0, result.output
    assert "Model    tiny-lora version 1" in result.stdout
