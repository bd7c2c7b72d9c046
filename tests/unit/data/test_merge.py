"""The mixture: stable sides, no copies, exams looked for."""

import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from tests import tiny
from tuneline.config.data import ExamConfig, MergeConfig
from tuneline.data import merge, schema, sources
from tuneline.data.corpus import Corpus
from tuneline.errors import DataError
from tuneline.identity import Manifest

pytestmark = pytest.mark.usefixtures("home")
NO_EXAMS = Manifest(kind="benchmarks", items=[])


def corpus(name, answers):
    rows = [schema.example(name, [schema.message("user", "q"), schema.message("assistant", a)]) for a in answers]
    rows = Dataset.from_list(rows, features=schema.EXAMPLE)
    return Corpus({"examples": rows}, {"source": name}, {"dropped": {}})


@given(ids=st.lists(st.text(min_size=1), min_size=1, unique=True), fraction=st.floats(0, 0.99))
def test_a_side_follows_from_the_id_alone(ids, fraction):
    sides = [merge.is_held_out(example_id, fraction) for example_id in ids]

    assert sides == [merge.is_held_out(example_id, fraction) for example_id in ids]
    assert all(merge.is_held_out(example_id, 0.99) for example_id, held in zip(ids, sides, strict=True) if held)


def test_about_the_asked_share_is_held_out():
    held = sum(merge.is_held_out(str(i), 0.3) for i in range(10_000))

    assert 2_800 < held < 3_200


def test_rows_keep_their_side_when_others_come():
    few, more = corpus("a", map(str, range(40))), corpus("b", map(str, range(100, 200)))
    config = MergeConfig(validation_fraction=0.4)

    alone = merge.merge([few], NO_EXAMS, config).splits["validation"]["id"]
    together = merge.merge([more, few], NO_EXAMS, config).splits["validation"]["id"]

    assert set(alone) <= set(together)


def test_exact_copies_are_dropped_and_counted():
    mixture = merge.merge([corpus("a", "xyz"), corpus("b", "xyw")], NO_EXAMS, MergeConfig(validation_fraction=0))

    assert mixture.counts["exact_copies_dropped"] == 2
    assert mixture.splits["train"]["source"][:] == ["a", "a", "a", "b"]


def test_nothing_to_hold_out_is_told():
    with pytest.raises(DataError, match="holds out 0 of 1 examples; 5 are the fewest"):
        merge.merge([corpus("a", "x")], NO_EXAMS, MergeConfig(validation_fraction=1e-9))


def test_an_exam_question_in_the_training_rows_is_counted(tmp_path):
    exams = sources.locate_exams([ExamConfig(name="e", path=tiny.write_exam(tmp_path))])
    rows = corpus("a", ["I was asked: which is number TEST2?", "nothing"])

    mixture = merge.merge([rows], exams, MergeConfig(validation_fraction=0))

    assert mixture.counts["contaminated_exam_questions"] == {"e": 1}
