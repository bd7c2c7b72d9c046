"""Working directories with LlamaFactory's data, or with small datasets."""

import json
import os
from pathlib import Path

import pytest

from tests import tiny


@pytest.fixture
def llamafactory_dir(tmp_path, monkeypatch):
    """Working directory with LlamaFactory's data."""
    (tmp_path / "data").symlink_to(Path(os.environ["TUNELINE_TEST_DATA"], "llamafactory"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Working directory with small datasets."""
    tiny.write_jsonl(tmp_path / "data" / "rows.jsonl", tiny.alpaca_rows(4))
    tiny.write_jsonl(tmp_path / "data" / "more.jsonl", tiny.alpaca_rows(4))
    tiny.write_texts(tmp_path / "data" / "texts.jsonl", 4)
    info = {
        "rows": {"file_name": "rows.jsonl"},
        "more": {"file_name": "more.jsonl", "num_samples": 3},
        "texts": {"file_name": "texts.jsonl", "columns": {"prompt": "text"}},
        "pictures": {"file_name": "rows.jsonl", "columns": {"images": "images"}},
        "pairs": {"file_name": "rows.jsonl", "ranking": True, "columns": {"chosen": "chosen", "rejected": "rejected"}},
    }
    (tmp_path / "data" / "dataset_info.json").write_text(json.dumps(info))
    monkeypatch.chdir(tmp_path)
    return tmp_path
