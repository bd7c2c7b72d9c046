"""Integrity of registered versions: changed, missing and added files are reported by name."""

import json
import shutil

import mlflow
import pytest

from tests import tiny
from tuneline.errors import TrackingError
from tuneline.identity import sha256_of
from tuneline.model.checkpoint import METADATA_FILE, Checkpoint
from tuneline.tracking import integrity, promotion, registry, run_artifacts

pytestmark = pytest.mark.usefixtures("own_server", "home")


@pytest.fixture
def make_version(tmp_path, tiny_model):
    """Register a copy of the tiny model under a name that is unique per test."""

    def make(name="one"):
        folder = tmp_path / name
        shutil.copytree(tiny_model, folder / "files")
        (folder / "files" / "note.txt").write_text(name)
        checkpoint = Checkpoint(folder / "files", "merged", {"base_model": "x"})
        metadata = {
            "kind": checkpoint.kind,
            "identity": checkpoint.identity,
            "files": checkpoint.files(),
            "sha256": checkpoint.content_hash(),
        }
        (folder / METADATA_FILE).write_text(json.dumps(metadata))
        with mlflow.start_run() as run:
            pass
        return registry.register(tmp_path.name, checkpoint.content_hash(), folder.as_uri(), run.info.run_id, {})[0]

    return make


@pytest.fixture
def version(make_version):
    return make_version()


def flip(path):
    """Flip one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def error_message(version):
    with pytest.raises(TrackingError) as caught:
        integrity.verified_folder(version)
    return str(caught.value)


def test_an_unchanged_version_passes(version):
    assert integrity.verified_folder(version) == version.folder()


def test_a_flipped_bit_of_the_weights_is_reported_with_both_hashes(version):
    weights = version.folder() / "model.safetensors"
    expected = sha256_of(weights)

    flip(weights)

    message = error_message(version)
    assert f"{weights} has the sha256 {sha256_of(weights)}, expected {expected} as registered." in message
    assert "version 1 (no alias)" in message
    assert message.endswith(
        f"Restore it from a backup, or use another version: `tuneline models {version.name}` lists them."
    )


def test_a_removed_file_is_reported(version):
    (version.folder() / "tokenizer_config.json").unlink()

    assert "tokenizer_config.json is missing (sha256 " in error_message(version)


def test_a_replaced_tokenizer_is_reported(version):
    path = version.folder() / "tokenizer.json"
    metadata = json.loads(path.read_text())
    metadata["added_tokens"][0]["content"] = "<|other|>"
    path.write_text(json.dumps(metadata))

    assert f"{path} has the sha256 {sha256_of(path)}" in error_message(version)


def test_an_edited_chat_template_is_reported_with_the_number_of_other_changes(version):
    (version.folder() / "chat_template.jinja").write_text("{{ messages }}")
    (version.folder() / "config.json").unlink()

    message = error_message(version)
    assert "chat_template.jinja has the sha256" in message
    assert "; 1 more differ." in message


def test_an_added_file_is_reported(version):
    (version.folder() / "model-00002.safetensors").write_text("more")

    assert "model-00002.safetensors was not registered." in error_message(version)


def test_a_model_card_is_not_part_of_the_content(version):
    (version.folder() / "README.md").write_text("# A card")

    assert integrity.verified_folder(version)


def test_a_forged_file_list_is_detected_by_the_registered_hash(version):
    """The content hash in the registry detects a change of both the file and the list."""
    path = version.folder() / "config.json"
    path.write_text("{}")
    metadata_path = version.folder().parent / METADATA_FILE
    metadata = json.loads(metadata_path.read_text())
    metadata["files"] = [[name, sha256_of(path) if name == "config.json" else sha] for name, sha in metadata["files"]]
    metadata_path.write_text(json.dumps(metadata))

    assert f"have the content hash {Checkpoint(version.folder(), 'merged', {'base_model': 'x'}).content_hash()}" in (
        error_message(version)
    )


@pytest.mark.parametrize("damage", ["remove", "empty"])
def test_a_missing_or_truncated_file_list_is_reported(version, damage):
    path = version.folder().parent / METADATA_FILE
    path.unlink() if damage == "remove" else path.write_text("")

    assert f"{path} {'is missing' if damage == 'remove' else 'cannot be read'}" in error_message(version)


def test_a_version_registered_by_another_program_is_not_checked(tmp_path):
    tiny.store_model(tmp_path / "theirs", "x")
    client = mlflow.MlflowClient()
    client.create_registered_model(tmp_path.name)
    client.create_model_version(tmp_path.name, (tmp_path / "theirs").as_uri())

    assert integrity.verified_folder(registry.find_version(tmp_path.name, "1")).name == "files"


def test_only_changed_files_are_hashed_again(version, monkeypatch):
    integrity.verified_folder(version)
    read = []
    monkeypatch.setattr("tuneline.identity.sha256_of", lambda path: read.append(path.name) or sha256_of(path))

    integrity.verified_folder(version)
    assert read == []
    (version.folder() / "config.json").touch()
    integrity.verified_folder(version)
    assert read == ["config.json"]
    integrity.verified_folder(version, full=True)
    assert len(read) > 5, "all files are hashed"


def test_a_damaged_version_is_neither_promoted_nor_restored_by_rollback(make_version):
    first, second = make_version("one"), make_version("two")
    promotion.force(first.name, "1", "first")
    promotion.force(first.name, "2", "second")
    flip(first.folder() / "model.safetensors")

    with pytest.raises(TrackingError, match=r"version 1 \(previous\): .*model.safetensors has the sha256"):
        promotion.rollback(first.name)
    with pytest.raises(TrackingError, match="has the sha256"):
        promotion.force(first.name, "1", "again")
    with pytest.raises(TrackingError, match="has the sha256"):
        run_artifacts.promote(first.name, "1")
    assert registry.get_champion(second.name).version == "2", "no alias was moved"


def test_a_damaged_champion_is_reported_before_training_and_can_be_rolled_back(make_version):
    first, second = make_version("one"), make_version("two")
    promotion.force(first.name, "1", "first")
    promotion.force(first.name, "2", "second")
    flip(second.folder() / "tokenizer.json")

    with pytest.raises(TrackingError, match=rf"remove the alias: `tuneline rollback {first.name}`"):
        integrity.check_champion(first.name)
    assert promotion.rollback(first.name).version == "1"
    integrity.check_champion(first.name)
