"""Artifacts load as they were saved: in place from a local store, as a copy from a remote one."""

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from datasets import Dataset

from materializers.checkpoint import CheckpointMaterializer
from materializers.dataset import CorpusMaterializer
from materializers.document import DocumentMaterializer
from materializers.folders import FolderMaterializer
from materializers.report import ReportMaterializer
from tuneline import checksums, state
from tuneline.data.corpus import Corpus
from tuneline.errors import ArtifactError
from tuneline.evaluation.report import Report
from tuneline.evaluation.score_store import Score
from tuneline.identity import FileEntry, Located, Manifest, sha256_of
from tuneline.model.checkpoint import Checkpoint

pytestmark = pytest.mark.zenml


@pytest.fixture
def store(zenml_world, home):
    from zenml.client import Client

    return Client().active_stack.artifact_store


@pytest.fixture(params=["local", "remote"])
def artifact(request, store, tmp_path, monkeypatch):
    """Return a function that saves with one materializer and loads with another, as two steps do."""
    monkeypatch.setattr(FolderMaterializer, "is_local", property(lambda self: request.param == "local"))
    uri = Path(store.path) / "tests" / tmp_path.name
    uri.mkdir(parents=True)

    def round_trip(kind, data):
        writer = kind(str(uri), artifact_store=store)
        writer.save(data)
        loaded = kind(str(uri), artifact_store=store).load(type(data))
        pages = writer.save_visualizations(data)
        assert all(Path(page).stat().st_size for page in pages)
        return loaded, writer.compute_content_hash(data), writer.extract_metadata(data), uri

    round_trip.is_local = request.param == "local"
    return round_trip


def test_a_corpus_keeps_rows_identity_and_counts(artifact):
    rows = Dataset.from_dict({"a": [1, 2, 3]})
    corpus = Corpus(
        {"train": rows, "validation": rows.select([0])}, {"tokenizer": "t"}, {"dropped": 2, "more": {"x": 1}}
    )

    loaded, content_hash, metadata, uri = artifact(CorpusMaterializer, corpus)

    assert loaded.splits["train"]["a"][:] == [1, 2, 3]
    assert (loaded.identity, loaded.counts) == (corpus.identity, corpus.counts)
    assert content_hash == loaded.content_hash() == corpus.content_hash()
    assert metadata["rows"] == {"train": 3, "validation": 1}
    if artifact.is_local:
        assert loaded.splits["train"].cache_files[0]["filename"].startswith(str(uri)), "memory-mapped in the store"


def test_the_content_hash_of_a_corpus_covers_values_but_not_counts():
    rows = Dataset.from_dict({"a": [1, 2]})
    same = Corpus({"x": Dataset.from_dict({"a": [0, 1, 2]}).select([1, 2])}, {}, {"dropped": 1})

    assert Corpus({"x": rows}).content_hash() == same.content_hash()
    assert Corpus({"x": rows}, {"k": 1}).content_hash() != same.content_hash()


@pytest.fixture
def files(tmp_path):
    folder = tmp_path / "scratch"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "config.json").write_text("{}")
    return folder


@pytest.mark.parametrize("disposable", [True, False])
def test_a_checkpoint_is_moved_or_linked_on_a_local_store(artifact, files, disposable):
    inode = (files / "model.safetensors").stat().st_ino
    checkpoint = Checkpoint(files, "merged", {"base_model": "b"}, {"kl": 0.0}, disposable=disposable)

    loaded, content_hash, metadata, uri = artifact(CheckpointMaterializer, checkpoint)

    assert (loaded.kind, loaded.identity, loaded.facts, loaded.sha256) == (
        "merged",
        {"base_model": "b"},
        {"kl": 0.0},
        content_hash,
    )
    assert (loaded.path / "model.safetensors").read_bytes() == b"weights"
    assert metadata["bytes"] == 9
    assert (uri / "MLmodel").exists()
    if artifact.is_local:
        assert (loaded.path / "model.safetensors").stat().st_ino == inode
        assert (files / "model.safetensors").exists() != disposable


def test_the_content_hash_of_a_checkpoint_covers_weights_config_and_identity_only(files):
    before = Checkpoint(files, "merged").content_hash()
    (files / "README.md").write_text("a comment")

    assert Checkpoint(files, "merged", facts={"kl": 1.0}).content_hash() == before
    assert Checkpoint(files, "merged", {"rows": "other"}).content_hash() != before
    (files / "config.json").write_text("{ }")
    assert Checkpoint(files, "merged").content_hash() != before


def test_the_content_hash_of_a_manifest_does_not_depend_on_locations(artifact):
    entry = FileEntry(name="x", size=1, sha256="s")
    here, there = (
        Manifest(kind="sources", items=[Located(name="n", location=folder, source=folder, files=[entry])])
        for folder in ("here", "there")
    )

    loaded, content_hash, metadata, _ = artifact(DocumentMaterializer, here)

    assert loaded == here
    assert content_hash == there.content_hash()
    assert metadata["bytes"] == 1


def test_a_report_keeps_every_item(artifact):
    def scores(value):
        return [Score("held_out", str(i), "p", "r", "o", {"rougeL": value + i}) for i in range(3)]

    report = Report(scores(0.0), scores(1.0), "b", "m")

    loaded, _, metadata, _ = artifact(ReportMaterializer, report)

    assert loaded == report
    assert metadata["rougeL.gain"] == 1.0


@pytest.fixture
def corpus():
    return Corpus({"train": Dataset.from_dict({"a": [1, 2, 3]})}, {"tokenizer": "t"}, {"dropped": 2})


@pytest.fixture
def any_artifact(artifact, corpus, files):
    """Artifacts of each kind, with their materializer and the file to damage."""
    manifest = Manifest(kind="sources", items=[])
    scores = [Score("held_out", "0", "p", "r", "o", {"rougeL": 0.5})]
    return {
        "corpus": (CorpusMaterializer, corpus, "train.arrow"),
        "counts": (CorpusMaterializer, corpus, "corpus.json"),
        "checkpoint": (CheckpointMaterializer, Checkpoint(files, "merged"), "files/model.safetensors"),
        "facts": (CheckpointMaterializer, Checkpoint(files, "merged", facts={"kl": 0.1}), "checkpoint.json"),
        "report": (ReportMaterializer, Report(scores, scores, "b", "m"), "model.parquet"),
        "document": (DocumentMaterializer, manifest, "document.json"),
    }


KINDS = ["corpus", "counts", "checkpoint", "facts", "report", "document"]


@pytest.fixture
def load_again(store):
    """Return a function that loads like a later step, with the content hash that ZenML recorded."""

    def load(kind, data, uri, content_hash=None):
        reader = kind(str(uri), artifact_store=store)
        reader.expected_content_hash = content_hash
        return reader.load(type(data))

    return load


@pytest.mark.parametrize("kind", KINDS)
def test_a_flipped_bit_is_an_error_that_names_the_file(artifact, any_artifact, load_again, kind):
    materializer, data, name = any_artifact[kind]
    _, content_hash, _, uri = artifact(materializer, data)
    load_again(materializer, data, uri, content_hash)
    damaged = uri / name
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    shutil.rmtree(state.root() / "downloads", ignore_errors=True)  # as on another machine

    with pytest.raises(ArtifactError) as error_info:
        load_again(materializer, data, uri, content_hash)

    assert f"{name} has the sha256 {sha256_of(damaged)}" in str(error_info.value)
    assert "or compute it again: `tuneline run RECIPE" in str(error_info.value)


@pytest.mark.parametrize("kind", ["corpus", "checkpoint", "report", "document"])
def test_a_missing_artifact_is_an_error(artifact, any_artifact, load_again, kind):
    materializer, data, _ = any_artifact[kind]
    _, content_hash, _, uri = artifact(materializer, data)
    shutil.rmtree(uri)

    with pytest.raises(ArtifactError, match=f"{uri} is missing."):
        load_again(materializer, data, uri, content_hash)


@pytest.mark.parametrize("kind", ["corpus", "checkpoint", "report", "document"])
def test_files_with_valid_checksums_must_match_the_content_hash_in_zenml(artifact, any_artifact, load_again, kind):
    materializer, data, _ = any_artifact[kind]
    _, _, _, uri = artifact(materializer, data)

    with pytest.raises(ArtifactError, match=f"expected {'0' * 64} as ZenML recorded it"):
        load_again(materializer, data, uri, "0" * 64)


def test_truncated_checksums_and_added_files_are_errors(artifact, files, load_again):
    data = Checkpoint(files, "merged", disposable=False)
    _, content_hash, _, uri = artifact(CheckpointMaterializer, data)
    (uri / "files" / "model-00002.safetensors").write_text("more")
    shutil.rmtree(state.root() / "downloads", ignore_errors=True)
    with pytest.raises(ArtifactError, match=r"model-00002.safetensors was added after it was stored"):
        load_again(CheckpointMaterializer, data, uri, content_hash)

    (uri / checksums.FILE).write_text('{"content_hash": "')
    with pytest.raises(ArtifactError, match=r"checksums.json is damaged"):
        load_again(CheckpointMaterializer, data, uri, content_hash)


def test_an_artifact_without_checksums_is_verified_by_its_values(artifact, corpus, load_again):
    _, content_hash, _, uri = artifact(CorpusMaterializer, corpus)
    (uri / checksums.FILE).unlink()
    assert load_again(CorpusMaterializer, corpus, uri, content_hash).only()["a"][:] == [1, 2, 3]

    shutil.rmtree(state.root() / "downloads", ignore_errors=True)
    (uri / "train.arrow").unlink()
    replace(corpus, splits={"train": Dataset.from_dict({"a": [1, 2, 4]})}).save(uri)
    with pytest.raises(ArtifactError, match=f"expected {content_hash} as ZenML recorded it"):
        load_again(CorpusMaterializer, corpus, uri, content_hash)


def test_a_remote_artifact_is_copied_once_and_leaves_no_temporary_files(
    artifact, files, load_again, tmp_path, monkeypatch
):
    if artifact.is_local:
        pytest.skip("a local artifact is read in place")
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    data = Checkpoint(files, "merged")

    loaded, content_hash, _, uri = artifact(CheckpointMaterializer, data)
    again = load_again(CheckpointMaterializer, data, uri, content_hash)

    assert again.path == loaded.path
    assert again.path.is_relative_to(state.root() / "downloads")
    assert list(temporary.iterdir()) == []
