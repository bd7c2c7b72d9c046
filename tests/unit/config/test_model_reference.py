"""Model arguments of the command line."""

import pytest

from tuneline.config.parsing import model_reference
from tuneline.config.parsing.model_reference import AdapterFolder, TrainingCheckpoint
from tuneline.config.sections.export import RegisteredModel
from tuneline.config.sections.model import CatalogueModel, DirectoryModel, GgufModel, HubModel
from tuneline.errors import RecipeError


def registered(name, version="champion"):
    return RegisteredModel(type="registered", name=name, version=version)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("demo", registered("demo")),
        ("demo@champion", registered("demo")),
        ("demo@challenger", registered("demo", "challenger")),
        ("demo/7", registered("demo", "7")),
        ("models:/demo", registered("demo")),
        ("models:/demo/7", registered("demo", "7")),
        ("models:/demo/challenger", registered("demo", "challenger")),
        ("models:/demo@challenger", registered("demo", "challenger")),
        ("owner/name", HubModel(type="hub", repo_id="owner/name")),
        ("owner/name@v1.0", HubModel(type="hub", repo_id="owner/name", revision="v1.0")),
        ("hf:owner/7", HubModel(type="hub", repo_id="owner/7")),
        ("smollm2-135m-instruct", CatalogueModel(type="catalogue", name="smollm2-135m-instruct")),
        ("smollm2-135m-instruct@champion", registered("smollm2-135m-instruct")),
    ],
)
def test_names(text, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    assert model_reference.parse(text) == expected


@pytest.mark.parametrize(
    ("files", "kind"),
    [
        (["config.json", "model.safetensors"], DirectoryModel),
        (["adapter_config.json", "adapter_model.safetensors"], AdapterFolder),
        (["bottleneck_config.json", "bottleneck.safetensors"], AdapterFolder),
        (["adapter_config.json", "adapter_base.json", "base_model/config.json"], DirectoryModel),
        (["checkpoint-5/trained.safetensors", "training.json"], TrainingCheckpoint),
        (["model.gguf"], DirectoryModel),
        ([], DirectoryModel),
    ],
)
def test_a_folder_is_recognized_by_its_files_before_a_name(files, kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in files:
        (tmp_path / "demo" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "demo" / name).touch()
    (tmp_path / "demo").mkdir(exist_ok=True)

    reference = model_reference.parse("demo")

    assert isinstance(reference, kind)
    assert reference.path == tmp_path / "demo"


def test_a_checkpoint_and_a_gguf_file_are_recognized(tmp_path):
    (tmp_path / "checkpoint-5").mkdir()
    (tmp_path / "checkpoint-5" / "trained.safetensors").touch()
    (tmp_path / "m.gguf").touch()

    assert model_reference.parse(str(tmp_path / "checkpoint-5")) == TrainingCheckpoint(tmp_path / "checkpoint-5")
    assert model_reference.parse(str(tmp_path / "m.gguf")) == GgufModel(type="gguf", path=tmp_path / "m.gguf")


@pytest.mark.parametrize(
    "text",
    [
        "./no",
        "../no",
        "/no/such",
        "~/no",
        "no.gguf",
        "a b",
        "a@b@c",
        "",
        "a\0b",
        "x" * 9000,
        "a" * 200 + "/" + "b" * 200,
    ],
)
def test_other_texts_are_refused_in_one_line(text):
    with pytest.raises(RecipeError, match=r"does not exist|neither an existing path nor a valid name") as caught:
        model_reference.parse(text)
    assert "\n" not in str(caught.value)
