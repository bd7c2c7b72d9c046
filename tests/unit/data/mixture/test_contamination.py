"""Evaluation sets are searched in the training examples: exactly the planted items are found."""

import json
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import harness_tasks
from tuneline.config.sections.exams import ExamConfig
from tuneline.config.sections.lm_eval import LmEvalConfig
from tuneline.data import ngrams, schema
from tuneline.data.benchmarks import exam_files, multiple_choice
from tuneline.data.corpus import RowWriter
from tuneline.data.mixture import contamination, ngram_index
from tuneline.identity import Manifest

pytestmark = pytest.mark.usefixtures("home")
NO_EXAMS = Manifest(kind="benchmarks", items=[])
LONG = "In which year did the first of the two brothers leave the small town near the river for good?"
CHINESE = "下列关于长江中下游平原的说法中、哪一项是正确的。"


@pytest.fixture(scope="module", autouse=True)
def short_questions_count():
    """Treat short questions like long ones in these tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ngrams, "MIN_QUESTION_WORDS", 0)
        yield


def test_a_short_question_is_searched_with_its_choices(monkeypatch):
    monkeypatch.setattr(ngrams, "MIN_QUESTION_WORDS", 8)
    short = multiple_choice.Question("s", "Which is true?", ("one", "two", "three", "four"), "A")
    long = multiple_choice.Question("s", "Which of these eight words is the longest of all?", ("a", "b", "c", "d"), "A")

    assert contamination._identifying_text(short) == "Which is true? one two three four"
    assert contamination._identifying_text(long) == long.text


def chat(*texts, **more):
    roles = ("user", "assistant") * len(texts)
    return schema.content([schema.message(role, text) for role, text in zip(roles, texts, strict=False)], **more)


def mixture_of(contents, copies=None):
    examples = [schema.example("a", content) for content in contents]
    with RowWriter(schema.MIXED) as writer:
        writer.write(schema.to_arrow_columns(examples) | {"copy": copies or [0] * len(examples)})
    return writer.rows()


def exam(folder, questions):
    for split in ("dev", "test"):
        path = folder / split / "things.csv"
        path.parent.mkdir(parents=True)
        path.write_text("".join(f"{json.dumps(question, ensure_ascii=False)},a,b,c,d,A\n" for question in questions))
    return exam_files.locate_exams([ExamConfig(name="exam", path=folder)])


def kinds_in_exam(tmp_path, question, *examples):
    result = contamination.find_contamination(mixture_of(examples), mixture_of([]), exam(tmp_path / "exam", [question]))
    return result.rows["kind"][:]


def kinds_held_out(training, held_out):
    return contamination.find_contamination(mixture_of(training), mixture_of(held_out), NO_EXAMS).rows["kind"][:]


@pytest.mark.parametrize(
    ("question", "text", "kind"),
    [
        (LONG, f"They asked me: {LONG} I said 1912.", ["exact"]),
        (LONG, LONG.upper().replace(" ", " - "), ["exact"]),
        (LONG, LONG.replace("for good", "forever"), ["ngram"]),
        (LONG, " ".join(LONG.split()[3:16]), ["ngram"]),
        (LONG, " ".join(LONG.split()[3:15]), []),
        (LONG, LONG.replace("two", "three"), []),
        ("What is it?", "'what is IT' is a question", ["exact"]),
        ("What is it?", "what is item", []),
        ("What is it?", "What it is?", []),
        (CHINESE, f"问 {CHINESE}答 甲。", ["exact"]),
        (CHINESE, CHINESE.replace("长江中下游", "华北"), ["ngram"]),
        (CHINESE, CHINESE.replace("平原的说法", "农业"), []),
        ("∫?", "∫? ∫? ...", []),
    ],
)
def test_an_exam_question_is_found_exactly_or_by_a_13_gram(tmp_path, question, text, kind):
    assert kinds_in_exam(tmp_path, question, chat("hello", "yes"), chat(text, "yes")) == kind


def test_a_question_is_not_matched_across_examples(tmp_path):
    assert kinds_in_exam(tmp_path, "What is it?", chat("a", "so what"), chat("is it", "b")) == []


@pytest.mark.parametrize(
    "content",
    [
        chat("say", LONG),
        chat("a", LONG, "b", "c"),
        chat("say", chosen=[schema.message("assistant", LONG)], rejected=[schema.message("assistant", "no")]),
        chat("say", chosen=[schema.message("assistant", "no")], rejected=[schema.message("assistant", LONG)]),
        schema.content(text=f"Once upon a time. {LONG}"),
        schema.content([schema.message("assistant", "", tool_calls=json.dumps([{"arguments": {"q": LONG}}]))]),
    ],
)
def test_every_part_of_an_example_is_searched(tmp_path, content):
    assert kinds_in_exam(tmp_path, LONG, content) == ["exact"]


def test_an_item_is_reported_once_with_the_first_matching_example(tmp_path):
    almost, first, second = chat(LONG[:-6], "yes"), chat(LONG, "yes"), chat(LONG, "no")
    questions = exam(tmp_path, [LONG, "Who?", LONG + " And why?"])

    result = contamination.find_contamination(
        mixture_of([almost, first, second, first], copies=[0, 0, 0, 1]), mixture_of([]), questions
    )

    rows = result.rows.to_list()
    assert [(row["benchmark"], row["kind"]) for row in rows] == [("exam", "exact"), ("exam", "ngram")]
    assert [row["example_id"] for row in rows] == [schema.content_id(first), schema.content_id(almost)]
    assert len({row["item"] for row in rows}) == 2
    assert result.counts == {
        "exam": {"exact": 1, "ngram": 1, "boilerplate": 0, "items": 3},
        "held_out": {"exact": 0, "ngram": 0, "boilerplate": 0, "items": 0},
    }


@pytest.mark.parametrize(
    ("training", "kind"),
    [
        (chat("is it one?", "YES - it is"), ["exact"]),
        (chat("Before.", "Yes.", "Is it one?", "Yes, it is!"), ["exact"]),
        (chat("Is it one?", "Yes, it is! Now."), []),
        (chat("Is it two?", "Yes, it is!"), []),
    ],
)
def test_a_held_out_example_is_found_despite_case_and_punctuation(training, kind):
    assert kinds_held_out([chat("a", "b"), training], [chat("Hello", "Hi", "Is it one?", "Yes, it is!")]) == kind


def test_a_held_out_example_is_found_by_a_13_gram():
    held_out = [chat("When?", LONG), chat("What?", "nothing of this"), chat("Nobody", LONG[:40])]

    assert kinds_held_out([chat("a", f"Tell me: {LONG}")], held_out) == ["ngram"]
    assert kinds_held_out([chat("a", " ".join(LONG.split()[:12]))], held_out) == []


def test_turns_before_the_last_question_are_not_searched():
    assert kinds_held_out([chat(LONG, "x")], [chat(LONG, "a", "b", "c")]) == []


def test_examples_without_words_do_not_match():
    assert kinds_held_out([chat("?", "!")], [chat("!", "?")]) == []


SHARED = (
    "Read the report below and write one short and polite sentence that tells the customer when the parcel will come"
)


def kinds(training, held_out, **limit):
    result = contamination.find_contamination(mixture_of(training), mixture_of(held_out), NO_EXAMS, **limit)
    return result.rows["kind"][:], result.counts["held_out"]["boilerplate"], result.boilerplate


@pytest.mark.parametrize(
    "row",
    [
        lambda i: chat(f"{SHARED}\nThe parcel {i} left town {i}", f"It comes on day {i}"),
        lambda i: chat(f"{SHARED}\n{i}", f"Day {i}", label=bool(i % 2)),
        lambda i: schema.content(
            [schema.message("user", f"{i}?")],
            chosen=[schema.message("assistant", f"{SHARED} {i}")],
            rejected=[schema.message("assistant", f"no {i}")],
        ),
    ],
    ids=["chat", "label", "pair"],
)
def test_wording_shared_by_many_rows_is_boilerplate(row):
    """In the chats, all rows or a few rows also share the two words after the instruction."""
    rows = [row(i) for i in range(40)]

    result, num_boilerplate, boilerplate = kinds(rows[:34], rows[34:])

    assert (result, num_boilerplate) == ([], 6)
    assert {" ".join(SHARED.lower().split()[:13]): 34}.items() <= {
        run["words"]: run["rows"] for run in boilerplate
    }.items()
    assert kinds(rows[:34], rows[34:], boilerplate_rows=34)[:2] == (["ngram"] * 6, 0)


def test_an_ngram_that_begins_in_boilerplate_is_boilerplate():
    common = [chat(f"{SHARED} {i}", f"answer {i}") for i in range(20)]

    assert kinds([*common, chat(f"{SHARED} rare", "a")], [chat(f"{SHARED} rare", "b")])[:2] == ([], 1)
    assert kinds([*common, chat(f"{SHARED} {LONG}", "a")], [chat(f"{SHARED} {LONG}", "b")])[:2] == (["ngram"], 0)


def test_an_exact_copy_is_found_even_if_it_is_frequent(tmp_path):
    frequent = [chat(f"{i}", LONG) for i in range(30)] + [chat("When?", f"{SHARED}!")] * 30
    copies = [chat(f"{i}.", f"Asked: {LONG} Ever {i}") for i in range(30)]

    assert kinds(frequent, [chat("when", SHARED)])[0] == ["exact"]
    assert contamination.find_contamination(mixture_of(copies), mixture_of([]), exam(tmp_path, [LONG])).rows["kind"][
        :
    ] == ["exact"]


def test_a_row_counts_once_per_ngram(monkeypatch):
    monkeypatch.setattr(ngrams, "WORDS_PER_BATCH", 30)
    often = [chat(f"{SHARED} and {SHARED}", f"{SHARED} {i}") for i in range(10)]

    assert kinds(often, [chat("x", SHARED)])[0] == ["ngram"], "10 rows are not more than 10"
    assert kinds([*often, chat("y", f"{SHARED} too")], [chat("x", SHARED)])[:2] == ([], 1)


some_words = st.lists(st.sampled_from("abc"), max_size=9).map(" ".join)
chats = st.lists(st.lists(some_words, min_size=2, max_size=4), max_size=6)


def plain_search(train, held_out, questions, limit):
    """Search every item in every text, word by word."""
    texts = [f" {' '.join(' '.join(turns).split())} " for turns in train]
    tails = [" ".join(tail_of(turns).split()) for turns in train]
    kinds = []
    for item, anywhere in [
        *((question, True) for question in questions),
        *((tail_of(turns), False) for turns in held_out),
    ]:
        words = item.split()
        grams = [f" {' '.join(words[i : i + 3])} " for i in range(len(words) - 2)]
        is_exact = any(f" {' '.join(words)} " in text for text in texts) if anywhere else " ".join(words) in tails
        num_rows = [sum(gram in text for text in texts) for gram in grams]
        covered = {i + j for i, num in enumerate(num_rows) if num > limit for j in range(3)}
        is_partial = any(num and not covered & {i, i + 1, i + 2} for i, num in enumerate(num_rows))
        kinds += ["exact"] if words and is_exact else ["ngram"] if is_partial else []
    return kinds


def tail_of(turns):
    return " ".join(turns[(len(turns) - 1) // 2 * 2 :])


@settings(max_examples=60, deadline=None)
@given(
    train=chats,
    held_out=chats,
    questions=st.lists(some_words, min_size=1, max_size=5),
    words_per_batch=st.sampled_from([1, 20, 10_000]),
    max_index_words=st.sampled_from([1, 20, 10_000]),
    limit=st.sampled_from([1, 2, 10]),
)
def test_the_result_equals_a_plain_search_for_any_batch_size(
    tmp_path_factory, train, held_out, questions, words_per_batch, max_index_words, limit
):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ngram_index, "NGRAM_WORDS", 3)
        patch.setattr(ngrams, "WORDS_PER_BATCH", words_per_batch)
        patch.setattr(contamination, "MAX_INDEX_WORDS", max_index_words)
        exams = exam(tmp_path_factory.mktemp("exam"), questions)
        rows, items = mixture_of([chat(*turns) for turns in train]), mixture_of([chat(*turns) for turns in held_out])
        result = contamination.find_contamination(rows, items, exams, limit)

    assert result.rows["kind"][:] == plain_search(train, held_out, questions, limit)
    assert result.counts["held_out"]["items"] == len(held_out)
    assert result.counts["exam"]["items"] == len(questions)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("It's 3.5 o'Clock_now!", ["it", "s", "3", "5", "o", "clock", "now"]),
        ("Ça, déjà-vu?", ["ça", "déjà", "vu"]),
        ("用GPT4写、诗。", ["用", "gpt4", "写", "诗"]),
        ("カナ・かな 한국어 말", ["カ", "ナ", "か", "な", "한국어", "말"]),
        ("\x1f\x00 —", []),
    ],
)
def test_text_is_split_into_words_or_single_characters(text, words):
    assert ngrams.split_words(text) == words


def test_ngram_hashes_do_not_depend_on_the_position():
    (texts,) = ngrams.hash_texts([(4, "x y", "a b c"), (9, "", "b c"), (11, "", ""), (12, "c", "a")])

    assert texts.runs(np.array([3]), 2) == texts.runs(np.array([5]), 2)
    assert texts.runs(np.array([3]), 2) != texts.runs(np.array([7]), 2)
    assert texts.words_remaining().tolist() == [5, 4, 3, 2, 1, 2, 1, 2, 1]
    assert (texts.starts.tolist(), texts.tails.tolist(), texts.ends.tolist()) == (
        [0, 5, 7, 7],
        [2, 5, 7, 8],
        [5, 7, 7, 9],
    )


def test_exactly_the_planted_questions_of_a_real_exam_are_found(test_data, tmp_path):
    with zipfile.ZipFile(test_data / "exams" / "mmlu.zip") as archive:
        archive.extractall(tmp_path)
    (tests,) = tmp_path.rglob("test")
    exams = exam_files.locate_exams([ExamConfig(name="mmlu", path=tests.parent)])
    by_subject = multiple_choice.read_exam(exams.items[0]).test
    questions = [question for subject in by_subject.values() for question in subject]
    long = [question for question in questions if len(ngrams.split_words(question.text)) >= 20]
    planted = [chat(f"Exam: {question.text}", question.answer) for question in long[::50]]

    result = contamination.find_contamination(mixture_of(planted), mixture_of([]), exams)

    texts = {question.id(): " ".join(ngrams.split_words(question.text)) for question in questions}
    everything = " ".join(" ".join(ngrams.split_words(content["messages"][0]["content"])) for content in planted)
    exact = {row["item"] for row in result.rows if row["kind"] == "exact"}
    assert exact >= {question.id() for question in long[::50]}
    assert all(texts[item] in everything for item in exact)
    assert result.counts["mmlu"]["items"] == len(questions) > 9000


def test_a_harness_document_in_the_training_rows_is_found(home, tmp_path):
    pytest.importorskip("lm_eval", reason="the extra lm-eval is not installed")
    folder = harness_tasks.write(tmp_path / "tasks")
    config = LmEvalConfig(engine="lm_eval", name="h", task=str(folder / "colours.yaml"), metrics=["acc"])
    training = chat("I was asked: what colour is the quick answer 1? It is quick or brown.", "Yes.")

    result = contamination.find_contamination(mixture_of([training]), mixture_of([]), exam_files.locate_exams([config]))

    assert result.rows["kind"][:] == ["exact"]
    assert result.counts["h"] == {"exact": 1, "ngram": 0, "boilerplate": 0, "items": 6}
