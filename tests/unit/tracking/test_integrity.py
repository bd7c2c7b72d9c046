"""The files of a registered version are those that were registered, or that is told with the file's name."""

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
    """Register a copy of the tiny model under the test's own name."""

    def make(name="one"):
        folder = tmp_path / name
        shutil.copytree(tiny_model, folder / "files")
        (folder / "files" / "note.txt").write_text(name)
        made = Checkpoint(folder / "files", "merged", {"base_model": "x"})
        about = {"kind": made.kind, "identity": made.identity, "files": made.files(), "sha256": made.content_hash()}
        (folder / METADATA_FILE).write_text(json.dumps(about))
        with mlflow.start_run() as run:
            pass
        return registry.register(tmp_path.name, made.content_hash(), folder.as_uri(), run.info.run_id, {})[0]

    return make


@pytest.fixture
def version(make_version):
    return make_version()


def flip(path):
    """Flip one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def refusal(version):
    with pytest.raises(TrackingError) as caught:
        integrity.verified_folder(version)
    return str(caught.value)


def test_an_untouched_version_is_given_as_it_lies(version):
    assert integrity.verified_folder(version) == version.folder()


def test_a_flipped_bit_of_the_weights_is_told_with_both_hashes(version):
    weights = version.folder() / "model.safetensors"
    expected = sha256_of(weights)

    flip(weights)

    told = refusal(version)
    assert f"{weights} has the sha256 {sha256_of(weights)}, expected {expected} as registered." in told
    assert "version 1 (no alias)" in told
    assert told.endswith(
        f"Restore it from a backup, or use another version: `tuneline models {version.name}` lists them."
    )


def test_a_removed_file_is_told(version):
    (version.folder() / "tokenizer_config.json").unlink()

    assert "tokenizer_config.json is missing (sha256 " in refusal(version)


def test_a_replaced_tokenizer_is_told(version):
    path = version.folder() / "tokenizer.json"
    about = json.loads(path.read_text())
    about["added_tokens"][0]["content"] = "<|other|>"
    path.write_text(json.dumps(about))

    assert f"{path} has the sha256 {sha256_of(path)}" in refusal(version)


def test_an_edited_chat_template_is_told_and_the_number_of_others(version):
    (version.folder() / "chat_template.jinja").write_text("{{ messages }}")
    (version.folder() / "config.json").unlink()

    told = refusal(version)
    assert "chat_template.jinja has the sha256" in told
    assert "; 1 more differ." in told


def test_a_file_that_was_put_in_is_told(version):
    (version.folder() / "model-00002.safetensors").write_text("more")

    assert "model-00002.safetensors was not registered." in refusal(version)


def test_a_model_card_or_mlmodel_beside_it_is_no_content(version):
    (version.folder() / "README.md").write_text("# A card")

    assert integrity.verified_folder(version)


def test_the_list_of_files_is_believed_only_as_far_as_the_registry_says(version):
    """Who changes a file and the list beside it is found by the tag."""
    path = version.folder() / "config.json"
    path.write_text("{}")
    beside = version.folder().parent / METADATA_FILE
    about = json.loads(beside.read_text())
    about["files"] = [[name, sha256_of(path) if name == "config.json" else sha] for name, sha in about["files"]]
    beside.write_text(json.dumps(about))

    assert f"have the content hash {Checkpoint(version.folder(), 'merged', {'base_model': 'x'}).content_hash()}" in (
        refusal(version)
    )


@pytest.mark.parametrize("spoil", ["remove", "empty"])
def test_a_list_that_is_gone_or_torn_is_told(version, spoil):
    path = version.folder().parent / METADATA_FILE
    path.unlink() if spoil == "remove" else path.write_text("")

    assert f"{path} {'is missing' if spoil == 'remove' else 'cannot be read'}" in refusal(version)


def test_a_version_of_another_program_is_taken_as_it_is(tmp_path):
    tiny.store_model(tmp_path / "theirs", "x")
    client = mlflow.MlflowClient()
    client.create_registered_model(tmp_path.name)
    client.create_model_version(tmp_path.name, (tmp_path / "theirs").as_uri())

    assert integrity.verified_folder(registry.find_version(tmp_path.name, "1")).name == "files"


def test_bytes_are_read_again_only_where_a_file_changed(version, monkeypatch):
    integrity.verified_folder(version)
    read = []
    monkeypatch.setattr("tuneline.identity.sha256_of", lambda path: read.append(path.name) or sha256_of(path))

    integrity.verified_folder(version)
    assert read == []
    (version.folder() / "config.json").touch()
    integrity.verified_folder(version)
    assert read == ["config.json"]
    integrity.verified_folder(version, full=True)
    assert len(read) > 5, "all bytes are read, whatever is known"


def test_a_spoiled_version_is_not_promoted_nor_rolled_back_to(make_version):
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
    assert registry.get_champion(second.name).version == "2", "nothing moved"


def test_a_spoiled_champion_is_told_before_a_training_and_can_be_rolled_back(make_version):
    first, second = make_version("one"), make_version("two")
    promotion.force(first.name, "1", "first")
    promotion.force(first.name, "2", "second")
    flip(second.folder() / "tokenizer.json")

    with pytest.raises(TrackingError, match=rf"remove the alias: `tuneline rollback {first.name}`"):
        integrity.check_champion(first.name)
    assert promotion.rollback(first.name).version == "1"
    integrity.check_champion(first.name)
