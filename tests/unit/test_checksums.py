"""Checksums of stored artifacts, of copies under the state root, and of what a run begins with."""

import json
from dataclasses import replace

import pytest
from datasets import Dataset

from tuneline import checksums, identity, state
from tuneline.data.corpus import Corpus
from tuneline.data.tokenizer import derived_tokenizer
from tuneline.errors import ArtifactError, SourceError
from tuneline.evaluation import score_store
from tuneline.evaluation.score_store import Item
from tuneline.identity import Located, Manifest, file_entries
from tuneline.model import source, verification
from tuneline.model.checkpoint import METADATA_FILE, Checkpoint

pytestmark = pytest.mark.usefixtures("home")


@pytest.fixture
def artifact(tmp_path):
    """A stored artifact of two files."""
    folder = tmp_path / "artifact"
    (folder / "files").mkdir(parents=True)
    (folder / "files" / "weights").write_bytes(bytes(1000))
    (folder / "about.json").write_text("{}")
    checksums.write(folder, "content", "train")
    return folder


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_pages_that_are_written_later_are_no_content(artifact):
    (artifact / "preview.html").write_text("<h1>")

    assert checksums.check(artifact, full=True).step == "train"


def test_the_number_of_other_differences_is_told(artifact):
    flip(artifact / "files" / "weights")
    (artifact / "about.json").unlink()

    with pytest.raises(ArtifactError, match=r"about.json is missing. 1 more files differ."):
        checksums.check(artifact)


def test_a_rotten_disk_is_found_by_a_full_look_alone(artifact, monkeypatch):
    monkeypatch.setattr(identity, "sha256_of", lambda path: "0" * 64)

    checksums.check(artifact)
    with pytest.raises(ArtifactError, match="has the sha256 0000"):
        checksums.check(artifact, full=True)


def test_a_wrong_hash_in_the_cache_does_not_make_a_whole_artifact_damaged(artifact, home):
    known = json.loads((home / "hashes.json").read_text())
    (home / "hashes.json").write_text(json.dumps({path: [*was[:-1], "0" * 64] for path, was in known.items()}))

    assert checksums.check(artifact)


def test_nothing_is_read_again_where_nothing_changed(artifact, monkeypatch):
    checksums.check(artifact)
    monkeypatch.setattr(identity, "sha256_of", lambda path: pytest.fail(f"{path} is read again"))

    assert checksums.check(artifact)


@pytest.fixture
def stored_rows(tmp_path):
    """Rows of tokens as a step reads them."""
    folder = tmp_path / "rows"
    folder.mkdir()
    rows = Corpus({"train": Dataset.from_dict({"input_ids": [[1, 2, 3], [4, 5, 6]]})}, {"tokenizer": "t"})
    rows.save(folder)
    checksums.write(folder, rows.content_hash(), "tokenize_pack")
    return replace(Corpus.load(folder), folder=folder)


def test_rows_are_read_in_full_before_a_training(stored_rows, monkeypatch):
    verification.verify_hashes(stored_rows)
    changed = stored_rows.folder / "train.arrow"
    real = identity.sha256_of
    monkeypatch.setattr(identity, "sha256_of", lambda path: "0" * 64 if path == changed else real(path))

    with pytest.raises(ArtifactError) as caught:
        verification.verify_hashes(stored_rows)

    assert str(caught.value).startswith(f"{changed} has the sha256 0000")
    assert str(caught.value).endswith("`tuneline run RECIPE --recompute tokenize_pack`.")


def test_rows_must_have_the_values_of_their_content_hash(stored_rows):
    other = Corpus({"train": Dataset.from_dict({"input_ids": [[1, 2, 3], [4, 5, 7]]})}, {"tokenizer": "t"})
    other = replace(other, folder=stored_rows.folder)

    with pytest.raises(ArtifactError, match="has the content hash"):
        verification.verify_hashes(other)


@pytest.mark.parametrize("spoil", ["bytes", "recorded hash"])
def test_a_model_is_read_in_full_before_it_is_registered(tmp_path, spoil):
    files = tmp_path / "artifact" / "files"
    files.mkdir(parents=True)
    (files / "model.safetensors").write_bytes(bytes(100))
    (files.parent / METADATA_FILE).write_text("{}")
    model = Checkpoint(files, "merged")
    model = replace(model, sha256=model.content_hash())
    checksums.write(files.parent, model.sha256, "merge_adapter")
    verification.verify_hashes(model)

    if spoil == "bytes":
        flip(files / "model.safetensors")
    else:
        model = replace(model, sha256="0" * 64)

    with pytest.raises(ArtifactError, match="--recompute merge_adapter"):
        verification.verify_hashes(model)


def test_what_a_run_began_with_must_still_be_there(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(bytes(100))
    item = Located(name="m", location=str(tmp_path), source="m", files=file_entries(tmp_path, [path]))
    base_model = Manifest(kind="base_model", items=[item])
    verification.check_manifests(base_model)
    verification.verify_hashes(base_model)

    flip(path)
    for check in (verification.check_manifests, verification.verify_hashes):
        with pytest.raises(
            SourceError, match=r"model.safetensors has the sha256 .*, expected .* at the start of this run"
        ):
            check(base_model)
    path.unlink()
    with pytest.raises(SourceError, match=r"model.safetensors is missing; it existed at the start of this run"):
        verification.check_manifests(base_model)


def test_a_damaged_copy_of_a_tokenizer_is_made_again(tiny_model, caplog):
    def make():
        return derived_tokenizer.derive_tokenizer(
            source.tokenizer_manifest(tiny_model), ["key"], lambda tokenizer: {"note.txt": "same"}
        )

    first = make()
    flip(first.only().paths()[0])

    assert make() == first
    assert "The folder is a copy and is created again." in caplog.text
    assert make() == first


def test_damaged_scores_are_asked_again(caplog):
    questions = [Item("exam", str(i), "p", "r") for i in range(50)]
    asked = []

    def answer(missing):
        asked.append(len(missing))
        return [score_store.score_answer(item, "o", {"exam_accuracy": 1.0}) for item in missing]

    before = score_store.score_with_cache("m" * 64, "p" * 64, questions, answer)
    (path,) = state.folder("scores").rglob("*.parquet")
    content = bytearray(path.read_bytes())
    content[len(content) // 4] ^= 1
    path.write_bytes(content)

    assert score_store.score_with_cache("m" * 64, "p" * 64, questions, answer) == before
    path.write_bytes(content[:100])
    assert score_store.score_with_cache("m" * 64, "p" * 64, questions, answer) == before
    assert score_store.score_with_cache("m" * 64, "p" * 64, questions, answer) == before
    assert asked == [50, 50, 50]
    assert "is damaged" in caplog.text
