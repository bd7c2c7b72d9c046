"""Rows written and read in batches: the same values, however they are cut, and one file for them all."""

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


def written(*parts):
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
def test_batches_hold_the_rows_in_order_whatever_their_size(first, second, size):
    rows = written(first, second)
    read = list(corpus.iter_batches(rows, size))

    assert [text for batch in read for text in batch.column("record").to_pylist()] == first + second
    assert all(batch.num_rows == size for batch in read[:-1])


@settings(deadline=None, max_examples=40)
@given(texts=cells, cut=st.integers(0, 40))
def test_the_hash_follows_the_values_not_how_they_were_written(texts, cut):
    whole, parts = written(texts), written(texts[:cut], texts[cut:])
    mapped = records([*texts, "more"]).select(range(len(texts)))

    assert corpus.hash_rows(whole) == corpus.hash_rows(parts) == corpus.hash_rows(mapped)
    assert corpus.hash_rows(whole) != corpus.hash_rows(written([*texts, "more"]))


def test_a_written_file_is_linked_not_copied(tmp_path):
    rows = written(["a", "b"])
    Corpus({"records": rows}).save(tmp_path)

    assert (tmp_path / "records.arrow").stat().st_nlink == 2
    assert Corpus.load(tmp_path).only()[:] == rows[:]


@pytest.mark.parametrize("chosen", [[1], [2, 0], [0, 1, 2]])
def test_a_selection_is_kept_as_what_it_shows(tmp_path, chosen):
    rows = written(["a", "b", "c"]).select(chosen)
    kept = Corpus({"records": rows}, {"who": "me"}, {"n": 1}, [{"title": "1"}])
    kept.save(tmp_path)
    back = Corpus.load(tmp_path)

    assert back.only()["record"][:] == ["abc"[i] for i in chosen]
    assert (back.identity, back.counts, back.preview) == ({"who": "me"}, {"n": 1}, [{"title": "1"}])
    assert back.content_hash() == kept.content_hash()


def test_examples_come_back_from_columns_as_they_went_in():
    turns = [schema.message("user", "q"), schema.message("assistant", "", '[{"a":1}]', False)]
    said = [
        schema.content(turns, tools="[]"),
        schema.content(text="t"),
        schema.content(turns[:1], chosen=turns[1:], rejected=turns[1:], label=None),
        schema.content(turns, label=True),
    ]
    made = [schema.example("s", content) for content in said]

    with RowWriter(schema.EXAMPLE) as writer:
        writer.write(schema.to_arrow_columns(made))
    (batch,) = corpus.iter_batches(writer.rows())

    assert schema.from_arrow_batch(batch) == made
    assert [schema.kind(example) for example in made] == ["chat", "text", "preference", "kto"]
