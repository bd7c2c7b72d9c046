"""Each architecture of the table: llama.cpp computes what transformers computes, for a tiny random model."""

import re

import pytest

from benchmarks import gguf_table
from tests.gguf_models import build_architecture
from tuneline.errors import VerificationError
from tuneline.export.gguf import write
from tuneline.export.gguf.architectures import architectures


@pytest.mark.matrix(every=9)
@pytest.mark.parametrize("name", architectures)
def test_llama_cpp_computes_what_transformers_computes(name, tmp_path):
    folder = build_architecture(name, tmp_path / "model")

    report = write.write_gguf(folder, tmp_path / "model.gguf", "f16")

    assert report.mean_kl < 1e-5
    assert report.greedy_agreement > 0.95


def test_a_value_that_llama_cpp_has_built_in_is_detected(tmp_path, monkeypatch):
    from tests import gguf_models

    monkeypatch.setitem(gguf_models.LLAMA_CPP_KEYS, "gemma2", {"query_pre_attn_scalar": 4})
    folder = build_architecture("gemma2", tmp_path / "model")

    with pytest.raises(VerificationError, match="disagree on gemma2"):
        write.write_gguf(folder, tmp_path / "model.gguf", "f16")


def test_a_sliding_window_that_llama_cpp_lacks_ends_the_context(tmp_path):
    folder = build_architecture("mistral", tmp_path / "model")

    report = write.write_gguf(folder, tmp_path / "model.gguf", "f16")

    assert report.context_length == 8
    assert any("the context is 8, not 128" in note for note in report.notes)


def test_the_table_of_the_docs_lists_every_architecture():
    table = gguf_table.DOC.read_text().split(gguf_table.START)[1].split(gguf_table.END)[0]

    assert re.findall(r"^\| `([\w]+)` \| \d", table, re.M) == list(architectures)
    assert "refused" not in table
