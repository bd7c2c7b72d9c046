"""Data sets of the hub: copied once by commit, read without the network from then on. The hub here is a folder."""

import json
import time

import datasets
import huggingface_hub
import pytest
from datasets import Dataset, Features, Image, Value

from tests import tiny
from tuneline.config.sources import IngestConfig, SourceConfig
from tuneline.data import hub, sources
from tuneline.errors import DataError, SourceError

pytestmark = pytest.mark.usefixtures("home")
COMMIT = "a" * 40


def source(**more):
    return SourceConfig(name="rows", hub="team/rows", **more)


def ingest(**more):
    return sources.ingest(sources.locate([source(**more)]), IngestConfig(name="rows"))


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A folder that stands for the repository; calls to the hub are answered from it and noted down."""
    folder = tmp_path / "repository"
    tiny.write_jsonl(
        folder / "train.jsonl", [*tiny.alpaca_rows(4), {"instruction": "q", "input": None, "output": "\u2028"}]
    )
    tiny.write_jsonl(folder / "test.jsonl", tiny.alpaca_rows(2))
    tiny.write_jsonl(folder / "more" / "rows.jsonl", tiny.alpaca_rows(1))
    calls = []

    def info(self, repo_id, *, revision=None, timeout=None):
        calls.append(("info", repo_id, revision))
        card = huggingface_hub.DatasetCardData(license="mit")
        return huggingface_hub.hf_api.DatasetInfo(id=repo_id, sha=COMMIT, cardData=card.to_dict())

    def instead(function):
        def local(path, *, revision, **more):
            calls.append((function.__name__, path, revision))
            return function(str(folder), cache_dir=str(tmp_path / "cache"), **more)

        return local

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", info)
    monkeypatch.setattr(hub, "load_dataset", instead(datasets.load_dataset))
    monkeypatch.setattr(hub, "load_dataset_builder", instead(datasets.load_dataset_builder))
    return folder, calls


def test_a_split_is_copied_at_its_commit(repository):
    found = sources.locate([source(revision="main")]).only()

    assert found.source == f"hub team/rows@{COMMIT} split train"
    assert found.licence == "mit"
    assert [json.loads(row["record"]) for row in ingest().only()] == [
        *tiny.alpaca_rows(4),
        {"instruction": "q", "input": None, "output": "\u2028"},
    ]
    assert ("load_dataset", "team/rows", COMMIT) in repository[1]


def test_a_copy_of_a_commit_is_read_without_the_hub(repository, monkeypatch):
    first = sources.locate([source()])
    repository[1].clear()

    again = sources.locate([source()])
    by_commit = sources.locate([source(revision=COMMIT)])

    assert repository[1] == [("info", "team/rows", None)], "only the branch had to be looked up"
    assert first.content_hash() == again.content_hash() == by_commit.content_hash()


@pytest.mark.parametrize(
    ("place", "num_rows"),
    [
        ({"split": "test"}, 2),
        ({"folder": "more"}, 1),
        ({"streaming": True, "max_rows": 3}, 3),
        ({"split": "train[:2]"}, 2),
    ],
)
def test_a_copy_holds_what_was_asked_for(repository, place, num_rows):
    assert ingest(**place).counts["rows"] == num_rows
    assert ingest().counts["rows"] == 5


@pytest.mark.parametrize("streaming", [{}, {"streaming": True, "max_rows": 5}])
def test_a_download_that_breaks_leaves_nothing(repository, home, streaming):
    (repository[0] / "train.jsonl").write_text('{"a": 1}\nbroken\n')

    with pytest.raises(SourceError, match=r"sources.rows.hub: the hub does not give team/rows, split train.*JSON"):
        sources.locate([source(**streaming)])

    assert list((home / "hub").iterdir()) == []


def test_an_unknown_split_is_told_with_those_there_are(repository):
    with pytest.raises(SourceError, match=r"split validation, revision main: .*\btrain\b.*test"):
        sources.locate([source(split="validation")])


def test_images_are_refused(repository, tmp_path):
    features = Features({"text": Value("string"), "picture": Image()})
    rows = {"text": ["x"], "picture": [{"path": "p.png", "bytes": b"1"}]}
    for path in repository[0].rglob("*.jsonl"):
        path.unlink()
    Dataset.from_dict(rows, features=features).to_parquet(repository[0] / "train.parquet")

    with pytest.raises(DataError, match=r"team/rows: the column 'picture' holds bytes"):
        sources.locate([source()])


def test_images_are_refused_before_they_are_loaded(repository, monkeypatch):
    features = Features({"picture": Image()})
    monkeypatch.setattr(
        hub,
        "load_dataset_builder",
        lambda *_, **__: type("Builder", (), {"info": datasets.DatasetInfo(features=features)}),
    )

    with pytest.raises(DataError, match="the column 'picture' holds bytes"):
        sources.locate([source()])

    assert "load_dataset" not in [call[0] for call in repository[1]]


def test_a_hub_out_of_reach_is_told_at_once():
    start = time.monotonic()

    with pytest.raises(
        SourceError, match=r"sources.rows.hub: the hub does not give team/rows \(easy\), split train.*`path`"
    ):
        sources.locate([source(subset="easy")])

    assert time.monotonic() - start < 5


def test_copies_at_hand_are_named_when_the_hub_is_out_of_reach(repository, monkeypatch):
    sources.locate([source()])
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda *_, **__: 1 / 0)

    with pytest.raises(SourceError, match=f"Copied before, and read without the hub as `revision`: {COMMIT}."):
        sources.locate([source()])
    with pytest.raises(SourceError, match=r"set HF_TOKEN.$"):
        sources.locate([source(split="test")])
