"""Hub datasets are copied once per commit and then read without the network. The fake Hub is a thread."""

import json
import time

import datasets
import huggingface_hub
import pytest
from datasets import Dataset, Features, Image, Value

from tests import data_hub, tiny
from tuneline.config.sections.lm_eval import LmEvalConfig
from tuneline.config.sections.sources import IngestConfig, SourceConfig
from tuneline.data.benchmarks import exam_files, lm_eval
from tuneline.data.ingest import hub
from tuneline.data.ingest import ingest as ingest_module
from tuneline.errors import DataError, SourceError

pytestmark = pytest.mark.usefixtures("home")
COMMIT = data_hub.COMMIT


def source(**more):
    return SourceConfig(name="rows", hub="team/rows", **more)


def ingest(**more):
    return ingest_module.ingest(ingest_module.locate_sources([source(**more)]), IngestConfig(name="rows"))


def lines(*rows):
    return "".join(f"{json.dumps(row)}\n" for row in rows).encode()


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """The files of `team/rows` on a Hub that both libraries use; the working directory is empty."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "files"))
    with data_hub.serve(monkeypatch) as server:
        server.repositories["team/rows"] = {
            "train.jsonl": lines(*tiny.alpaca_rows(4), {"instruction": "q", "input": None, "output": "\u2028"}),
            "test.jsonl": lines(*tiny.alpaca_rows(2)),
            "more/rows.jsonl": lines(*tiny.alpaca_rows(1)),
        }
        yield server


def test_a_split_is_copied_at_its_commit(repository):
    located = ingest_module.locate_sources([source(revision="main")]).only()

    assert located.source == f"hub team/rows@{COMMIT} split train"
    assert located.licence == "mit"
    assert [json.loads(row["record"]) for row in ingest().only()] == [
        *tiny.alpaca_rows(4),
        {"instruction": "q", "input": None, "output": "\u2028"},
    ]
    assert any(COMMIT in request and request.endswith("/train.jsonl") for request in repository.requests)


@pytest.mark.parametrize("streaming", [{}, {"streaming": True, "max_rows": 9}])
def test_a_local_folder_of_the_same_name_does_not_replace_a_hub_dataset(repository, tmp_path, streaming):
    tiny.write_jsonl(tmp_path / "team" / "rows" / "train.jsonl", tiny.alpaca_rows(1))

    assert ingest(**streaming).counts["rows"] == 5


def test_a_cached_copy_of_another_commit_is_not_used(repository):
    ingest()
    repository.commit, repository.down = "b" * 40, True

    with pytest.raises(SourceError, match=f"got a cached copy of commit {COMMIT}, not of {'b' * 40}"):
        ingest()


def test_a_copy_of_a_commit_is_read_without_the_hub(repository, monkeypatch):
    first = ingest_module.locate_sources([source()])
    repository.requests.clear()

    second = ingest_module.locate_sources([source()])
    by_commit = ingest_module.locate_sources([source(revision=COMMIT)])

    assert repository.requests == ["GET /api/datasets/team/rows"], "only the branch had to be looked up"
    assert first.content_hash() == second.content_hash() == by_commit.content_hash()


@pytest.mark.parametrize(
    ("options", "num_rows"),
    [
        ({"split": "test"}, 2),
        ({"folder": "more"}, 1),
        ({"streaming": True, "max_rows": 3}, 3),
        ({"split": "train[:2]"}, 2),
    ],
)
def test_a_copy_has_only_the_requested_rows(repository, options, num_rows):
    assert ingest(**options).counts["rows"] == num_rows
    assert ingest().counts["rows"] == 5


@pytest.mark.parametrize("streaming", [{}, {"streaming": True, "max_rows": 5}])
def test_an_interrupted_download_leaves_no_files(repository, home, streaming):
    repository.repositories["team/rows"]["train.jsonl"] = b'{"a": 1}\nbroken\n'

    with pytest.raises(SourceError, match=r"sources.rows.hub: team/rows, split train, .*could not be downloaded.*JSON"):
        ingest_module.locate_sources([source(**streaming)])

    assert list((home / "hub").iterdir()) == []


def test_an_unknown_split_is_reported_with_the_existing_ones(repository):
    with pytest.raises(
        SourceError, match=r"split validation, revision main, could not be downloaded from the Hub: .*\btrain\b.*test"
    ):
        ingest_module.locate_sources([source(split="validation")])


def test_images_are_refused(repository, tmp_path):
    features = Features({"text": Value("string"), "picture": Image()})
    rows = {"text": ["x"], "picture": [{"path": "p.png", "bytes": b"1"}]}
    path = tmp_path / "picture.parquet"
    Dataset.from_dict(rows, features=features).to_parquet(path)
    repository.repositories["team/rows"] = {"train.parquet": path.read_bytes()}

    with pytest.raises(DataError, match=r"team/rows: the column 'picture' holds bytes"):
        ingest_module.locate_sources([source()])


def test_images_are_refused_before_they_are_loaded(repository, monkeypatch):
    features = Features({"picture": Image()})
    monkeypatch.setattr(
        hub,
        "load_dataset_builder",
        lambda *_, **__: type("Builder", (), {"info": datasets.DatasetInfo(features=features), "hash": COMMIT}),
    )

    with pytest.raises(DataError, match="the column 'picture' holds bytes"):
        ingest_module.locate_sources([source()])

    assert repository.requests == ["GET /api/datasets/team/rows"]


def test_an_unreachable_hub_is_reported_immediately():
    start = time.monotonic()

    with pytest.raises(
        SourceError, match=r"sources.rows.hub: team/rows \(easy\), split train, .*could not be downloaded.*`path`"
    ):
        ingest_module.locate_sources([source(subset="easy")])

    assert time.monotonic() - start < 5


def test_local_copies_are_named_if_the_hub_is_unreachable(repository, monkeypatch):
    ingest_module.locate_sources([source()])
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda *_, **__: 1 / 0)

    with pytest.raises(SourceError, match=f"Commits with a local copy, which `revision` can name: {COMMIT}."):
        ingest_module.locate_sources([source()])
    with pytest.raises(SourceError, match=r"set HF_TOKEN.$"):
        ingest_module.locate_sources([source(split="test")])


TASK = """
task: names
dataset_path: team/rows
test_split: test
output_type: generate_until
doc_to_text: "{{instruction}}"
doc_to_target: "{{output}}"
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
metadata: {version: 1.0}
"""


def test_a_harness_task_reads_the_hub_dataset_despite_a_local_folder_of_its_name(repository, tmp_path):
    pytest.importorskip("lm_eval", reason="the extra lm-eval is not installed")
    (tmp_path / "names.yaml").write_text(TASK)
    config = LmEvalConfig(engine="lm_eval", name="h", task=str(tmp_path / "names.yaml"), metrics=["exact_match"])
    plain = exam_files.locate_exams([config])
    tiny.write_jsonl(tmp_path / "team" / "rows" / "test.jsonl", tiny.alpaca_rows(1, start=9))

    shadowed = exam_files.locate_exams([config])

    assert len(lm_eval.read_document_texts(shadowed.items[0])) == 2
    assert shadowed.content_hash() == plain.content_hash(), "one identity"
    assert shadowed.items[0].source == plain.items[0].source
    assert shadowed.items[0].source.endswith(": names from team/rows")
