"""An export with a GGUF file: the folder, the Modelfile, the card and the facts."""

import shutil

import gguf
import pytest
from typer.testing import CliRunner

from tuneline.cli import exports, train
from tuneline.cli.app import app
from tuneline.config.sections.export import ExportStepConfig
from tuneline.config.sections.model import DirectoryModel
from tuneline.errors import SourceError
from tuneline.export import modelfile, write
from tuneline.export.origin import Origin
from tuneline.model import source
from tuneline.tracking import model_card

ORIGIN = Origin(name="demo", version="3", source="a test")


@pytest.fixture
def export(tiny_model, home):
    def run(**config):
        tokenizer, base_model, _ = source.resolve_model(DirectoryModel(type="directory", path=tiny_model))
        return write.export_model(tokenizer, base_model, ORIGIN, ExportStepConfig(**config))

    return run


def test_the_folder_has_a_verified_gguf_file_that_modelfile_card_and_checksums_name(export):
    exported = export(gguf="q8_0")
    card = model_card.render_export("", "demo", "a test", "mit", exported.facts)
    write.write_card_and_checksums(exported, card)

    file = exported.path / "model-q8_0.gguf"
    fields = gguf.GGUFReader(file).fields
    assert fields["general.name"].contents() == "demo version 3"
    assert fields["tokenizer.chat_template"].contents() == (exported.path / "chat_template.jinja").read_text()
    assert "FROM ./model-q8_0.gguf\n" in (exported.path / "Modelfile").read_text()
    assert "model-q8_0.gguf" in (exported.path / "SHA256SUMS").read_text()
    assert exported.facts["gguf.bytes"] == file.stat().st_size
    assert "GGUF for llama.cpp: model-q8_0.gguf, KL " in card
    assert f"equal prompts for {exported.facts['gguf.conversations']} conversations" in card


def test_without_gguf_nothing_changes(export):
    exported = export()

    assert not list(exported.path.glob("*.gguf"))
    assert "FROM .\n" in (exported.path / "Modelfile").read_text()
    assert not any(name.startswith("gguf") for name in exported.facts)


def test_the_modelfile_names_the_folder_if_ollama_would_prepend_bos_differently(tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    path = folder / "tokenizer_config.json"
    path.write_text(path.read_text().replace("{", '{"bos_token": "<|im_start|>", "add_bos_token": true,', 1))

    text = modelfile.build_modelfile(folder, ExportStepConfig(gguf="f16"), None).text

    assert "FROM .\n" in text


def test_an_architecture_that_cannot_be_exported_fails_the_export(export, tiny_model, monkeypatch):
    from tuneline.export.gguf.architectures import architectures

    monkeypatch.delitem(architectures._entries, "llama")

    with pytest.raises(SourceError, match="architecture 'llama' cannot be exported to GGUF"):
        export(gguf="f16")


def test_the_command_writes_the_option_into_the_recipe(tiny_model, monkeypatch):
    recipes = []
    monkeypatch.setattr(exports, "_write_config", lambda recipe: recipes.append(recipe))
    monkeypatch.setattr(train, "run", lambda *args, **kwargs: None)

    for options in (["--gguf", "q4_k_m"], []):
        result = CliRunner().invoke(app, ["export", str(tiny_model), *options])
        assert result.exit_code == 0, result.output

    assert recipes[0]["gguf"] == "q4_k_m"
    assert "gguf" not in recipes[1], "recipes and cache keys of earlier exports stay the same"
