"""A configuration of LlamaFactory runs as it is."""

import json

import pytest
import yaml
from typer.testing import CliRunner

from tests import tiny
from tuneline.cli.app import app

pytestmark = pytest.mark.zenml


def test_a_file_of_llamafactory_trains_is_judged_and_registered(project):
    tiny.write_jsonl(project / "data" / "rows.jsonl", tiny.alpaca_rows(60))
    (project / "data" / "dataset_info.json").write_text(json.dumps({"rows": {"file_name": "rows.jsonl"}}))
    theirs = {
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
    (project / "theirs.yaml").write_text(yaml.safe_dump(theirs))

    result = CliRunner().invoke(app, ["run", "theirs.yaml"])

    assert result.exit_code == 0, result.output
    assert "Model    tiny-lora version 1" in result.stdout
