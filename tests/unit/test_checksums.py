"""Checksums of stored artifacts, of copies under the state root, and of the inputs of a run."""

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
    """A stored artifact with two files."""
    folder = tmp_path / "artifact"
    (folder / "files").mkdir(parents=True)
    (folder / "files" / "weights").write_bytes(bytes(1000))
    (folder / "about.json").write_text("{}")
    checksums.write(folder, "content", "train")
    return folder


def flip_byte(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_html_previews_written_later_are_not_checked(artifact):
    (artifact / "preview.html").write_text("<h1>")

    assert checksums.check(artifact, full=True).step == "train"


def test_the_error_names_one_file_and_counts_the_others(artifact):
    flip_byte(artifact / "files" / "weights")
    (artifact / "about.json").unlink()

    with pytest.raises(ArtifactError, match=r"about.json is missing. 1 more files differ."):
        checksums.check(artifact)


def test_only_a_full_check_detects_changed_bytes_with_unchanged_size_and_time(artifact, monkeypatch):
    monkeypatch.setattr(identity, "sha256_of", lambda path: "0" * 64)

    checksums.check(artifact)
    with pytest.raises(ArtifactError, match="has the sha256 0000"):
        checksums.check(artifact, full=True)


def test_a_wrong_hash_in_the_hash_cache_does_not_fail_an_intact_artifact(artifact, home):
    cache = json.loads((home / "hashes.json").read_text())
    (home / "hashes.json").write_text(json.dumps({path: [*entry[:-1], "0" * 64] for path, entry in cache.items()}))

    assert checksums.check(artifact)


def test_unchanged_files_are_not_read_again(artifact, monkeypatch):
    checksums.check(artifact)
    monkeypatch.setattr(identity, "sha256_of", lambda path: pytest.fail(f"{path} is read again"))

    assert checksums.check(artifact)


@pytest.fixture
def stored_rows(tmp_path):
    """Tokenized rows, loaded from an artifact like in a step."""
    folder = tmp_path / "rows"
    folder.mkdir()
    rows = Corpus({"train": Dataset.from_dict({"input_ids": [[1, 2, 3], [4, 5, 6]]})}, {"tokenizer": "t"})
    rows.save(folder)
    checksums.write(folder, rows.content_hash(), "tokenize_pack")
    return replace(Corpus.load(folder), folder=folder)


def test_rows_are_verified_in_full_before_training(stored_rows, monkeypatch):
    verification.verify_hashes(stored_rows)
    damaged_path = stored_rows.folder / "train.arrow"
    sha256_of = identity.sha256_of
    monkeypatch.setattr(identity, "sha256_of", lambda path: "0" * 64 if path == damaged_path else sha256_of(path))

    with pytest.raises(ArtifactError) as error_info:
        verification.verify_hashes(stored_rows)

    assert str(error_info.value).startswith(f"{damaged_path} has the sha256 0000")
    assert str(error_info.value).endswith("`tuneline run RECIPE --recompute tokenize_pack`.")


def test_rows_must_match_their_content_hash(stored_rows):
    other = Corpus({"train": Dataset.from_dict({"input_ids": [[1, 2, 3], [4, 5, 7]]})}, {"tokenizer": "t"})
    other = replace(other, folder=stored_rows.folder)

    with pytest.raises(ArtifactError, match="has the content hash"):
        verification.verify_hashes(other)


@pytest.mark.parametrize("damage", ["bytes", "recorded hash"])
def test_a_model_is_verified_in_full_before_it_is_registered(tmp_path, damage):
    files = tmp_path / "artifact" / "files"
    files.mkdir(parents=True)
    (files / "model.safetensors").write_bytes(bytes(100))
    (files.parent / METADATA_FILE).write_text("{}")
    model = Checkpoint(files, "merged")
    model = replace(model, sha256=model.content_hash())
    checksums.write(files.parent, model.sha256, "merge_adapter")
    verification.verify_hashes(model)

    if damage == "bytes":
        flip_byte(files / "model.safetensors")
    else:
        model = replace(model, sha256="0" * 64)

    with pytest.raises(ArtifactError, match="--recompute merge_adapter"):
        verification.verify_hashes(model)


def test_changed_or_missing_inputs_of_a_run_are_errors(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(bytes(100))
    item = Located(name="m", location=str(tmp_path), source="m", files=file_entries(tmp_path, [path]))
    base_model = Manifest(kind="base_model", items=[item])
    verification.check_manifests(base_model)
    verification.verify_hashes(base_model)

    flip_byte(path)
    for check in (verification.check_manifests, verification.verify_hashes):
        with pytest.raises(
            SourceError, match=r"model.safetensors has the sha256 .*, expected .* at the start of this run"
        ):
            check(base_model)
    path.unlink()
    with pytest.raises(SourceError, match=r"model.safetensors is missing; it existed at the start of this run"):
        verification.check_manifests(base_model)


def test_a_damaged_copy_of_a_tokenizer_is_created_again(tiny_model, caplog):
    def derive():
        return derived_tokenizer.derive_tokenizer(
            source.tokenizer_manifest(tiny_model), ["key"], lambda tokenizer: {"note.txt": "same"}
        )

    first = derive()
    flip_byte(first.only().paths()[0])

    assert derive() == first
    assert "The folder is a copy and is created again." in caplog.text
    assert derive() == first


def test_damaged_scores_are_computed_again(caplog):
    questions = [Item("exam", str(i), "p", "r") for i in range(50)]
    batch_sizes = []

    def answer(missing):
        batch_sizes.append(len(missing))
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
    assert batch_sizes == [50, 50, 50]
    assert "is damaged" in caplog.text
