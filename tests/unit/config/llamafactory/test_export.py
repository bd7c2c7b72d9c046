"""Export keys of LlamaFactory."""

import json
from pathlib import Path

import pytest
import yaml

from tests.llamafactory_files import differences
from tuneline.config import llamafactory
from tuneline.config.load import load
from tuneline.errors import RecipeError


def test_an_export_becomes_an_export_recipe(project):
    path = Path("merge.yaml")
    content = {"model_name_or_path": "a/b", "adapter_name_or_path": "saves/one", "template": "llama3"}
    content |= {"export_dir": "merged", "export_size": 2, "export_device": "auto", "export_legacy_format": False}
    path.write_text(yaml.safe_dump({**content, "export_hub_model_id": "me/it", "infer_dtype": "bfloat16"}))

    imported = llamafactory.translate(path)

    recipe = imported.config.recipe
    assert imported.config.pipeline == "export_pipeline"
    assert recipe.adapters == [project / "saves" / "one"]
    assert (recipe.to, recipe.max_shard_size, recipe.dtype) == (project / "merged", "2GB", "bfloat16")
    assert recipe.push.repo_id == "me/it"
    assert recipe.push.private
    assert "is private" in differences(imported, "export_hub_model_id")
    assert "the device for a merge is found" in differences(imported, "export_device")
    (project / "kept").mkdir()
    (project / "kept" / "ours.yaml").write_text(imported.to_yaml(project / "kept"))
    assert "to: ../merged" in (project / "kept" / "ours.yaml").read_text()
    assert load(project / "kept" / "ours.yaml").recipe == recipe


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("export_legacy_format", True, "weights are written as safetensors only"),
        ("quantization_bit", 4, "merged into unquantized weights"),
        ("export_quantization_bit", 4, "not quantized when it is saved"),
        ("export_size", 0, "greater than or equal to 1"),
        ("export_hub_model_id", "no owner", "push.repo_id"),
    ],
)
def test_unsupported_export_options_are_reported_with_their_line(project, key, value, message):
    path = Path("merge.yaml")
    path.write_text(f"model_name_or_path: a/b\ntemplate: llama3\nexport_dir: merged\n{key}: {json.dumps(value)}\n")

    with pytest.raises(RecipeError, match=rf"merge.yaml:4: {key}: .*{message}"):
        llamafactory.translate(path)
