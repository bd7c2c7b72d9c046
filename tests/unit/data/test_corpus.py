"""Rows are written and read in batches with equal values for any batch size, in one file per split."""

import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from tuneline.data import corpus, schema
from tuneline.data.corpus import Corpus, RowWriter

pytestmark = pytest.mark.usefixtures("home")
cells = st.lists(st.text(max_size=4), max_size=40)


def columns(texts):
    return {"file": texts, "line": [1] * len(texts), "record": texts}


def write(*parts):
    with RowWriter(schema.RECORD) as writer:
        for texts in parts:
            writer.write(columns(texts))
    return writer.rows()


def records(texts):
    return Dataset.from_dict(columns(texts), features=schema.RECORD)


@pytest.fixture(scope="module", autouse=True)
def state(tmp_path_factory):
    with pytest.MonkeyPatch.context() as env:
        env.setenv("TUNELINE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@settings(deadline=None, max_examples=40)
@given(first=cells, second=cells, size=st.integers(1, 50))
def test_batches_contain_the_rows_in_order_for_any_size(first, second, size):
    rows = write(first, second)
    batches = list(corpus.iter_batches(rows, size))

    assert [text for batch in batches for text in batch.column("record").to_pylist()] == first + second
    assert all(batch.num_rows == size for batch in batches[:-1])


@settings(deadline=None, max_examples=40)
@given(texts=cells, split=st.integers(0, 40))
def test_the_hash_depends_on_the_values_and_not_on_the_batches(texts, split):
    single_batch, parts = write(texts), write(texts[:split], texts[split:])
    mapped = records([*texts, "more"]).select(range(len(texts)))

    assert corpus.hash_rows(single_batch) == corpus.hash_rows(parts) == corpus.hash_rows(mapped)
    assert corpus.hash_rows(single_batch) != corpus.hash_rows(write([*texts, "more"]))


def test_saving_links_the_file_instead_of_copying_it(tmp_path):
    rows = write(["a", "b"])
    Corpus({"records": rows}).save(tmp_path)

    assert (tmp_path / "records.arrow").stat().st_nlink == 2
    assert Corpus.load(tmp_path).only()[:] == rows[:]


@pytest.mark.parametrize("indices", [[1], [2, 0], [0, 1, 2]])
def test_a_selection_is_saved_with_exactly_its_rows(tmp_path, indices):
    rows = write(["a", "b", "c"]).select(indices)
    original = Corpus({"records": rows}, {"who": "me"}, {"n": 1}, [{"title": "1"}])
    original.save(tmp_path)
    loaded = Corpus.load(tmp_path)

    assert loaded.only()["record"][:] == ["abc"[i] for i in indices]
    assert (loaded.identity, loaded.counts, loaded.preview) == ({"who": "me"}, {"n": 1}, [{"title": "1"}])
    assert loaded.content_hash() == original.content_hash()


def test_examples_survive_the_round_trip_through_columns():
    turns = [schema.message("user", "q"), schema.message("assistant", "", '[{"a":1}]', False)]
    contents = [
        schema.content(turns, tools="[]"),
        schema.content(text="t"),
        schema.content(turns[:1], chosen=turns[1:], rejected=turns[1:], label=None),
        schema.content(turns, label=True),
    ]
    examples = [schema.example("s", content) for content in contents]

    with RowWriter(schema.EXAMPLE) as writer:
        writer.write(schema.to_arrow_columns(examples))
    (batch,) = corpus.iter_batches(writer.rows())

    assert schema.from_arrow_batch(batch) == examples
    assert [schema.kind(example) for example in examples] == ["chat", "text", "preference", "kto"]
