"""Example configs of LlamaFactory train unmodified, except for the model, the length and the number of steps."""

import math
from pathlib import Path

import pytest
import yaml

from tests.llamafactory_files import EXPECTED
from tuneline.config import llamafactory
from tuneline.data import prepare
from tuneline.model import resolve
from tuneline.train import training_run

TRAINED = [name for name, blocked in EXPECTED.items() if not blocked and not name.startswith("merge_lora/")]


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINED)
def test_an_imported_example_trains_on_its_dataset(name, test_data, tiny_model, home, tmp_path, monkeypatch):
    (tmp_path / "data").symlink_to(test_data / "llamafactory")
    monkeypatch.chdir(tmp_path)
    example = yaml.safe_load((test_data / "llamafactory_examples" / name).read_text())
    small = {"model_name_or_path": str(tiny_model), "cutoff_len": 256, "max_steps": 2}
    if "template" in example:
        small["template"] = "chatml"
    Path("example.yaml").write_text(yaml.safe_dump(example | small))

    recipe = llamafactory.translate(Path("example.yaml")).config.recipe
    tokenizer, base_model, _ = resolve.resolve_inputs(recipe.for_resolve())
    rows = prepare.prepare(recipe, tokenizer)
    resolve.check_inputs(base_model, tokenizer, recipe.for_resolve())
    _, report = training_run.train(rows, base_model, tokenizer, recipe.for_load(), recipe.method, recipe.for_train())

    assert len(report.history) == 2
    assert all(math.isfinite(entry["loss"]) for entry in report.history)
