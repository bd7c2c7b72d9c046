"""`tuneline data preview` shows the training sequences before a run and without ZenML."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from tests import tiny
from tuneline.cli import preview, show
from tuneline.cli.app import app
from tuneline.cli.main import main
from tuneline.data.tokenization.html_preview import TextSpan
from tuneline.errors import DataError, NotFoundError

LONG = {"instruction": "Count.", "output": " ".join(map(str, range(400)))}
BAD = {"instruction": "What?", "output": ""}


@pytest.fixture
def project(tmp_path, home, project_template):
    """Write a recipe over rows; returns its path."""

    def write(rows, *, source=None, **changes):
        path = tiny.write_jsonl(tmp_path / "rows.jsonl", rows)
        sources = [{"name": "mine", "path": str(path), **(source or {})}]
        model = {"type": "directory", "path": str(project_template / "model")}
        recipe = tiny.recipe(sources=sources, model=model, exams=[], evaluate={}, **changes)
        return tiny.write_config(tmp_path / "run.yaml", recipe)

    return write


def run(*arguments):
    return CliRunner().invoke(app, ["data", "preview", *map(str, arguments)])


def preview_text(*arguments):
    result = run(*arguments)
    if result.exception:
        raise result.exception
    return result.stdout


def as_json(*arguments):
    return json.loads(preview_text(*arguments, "--json"))


def test_trained_text_is_marked_without_colors(project):
    text = preview_text(project(tiny.alpaca_rows(20)), "--rows", "2")

    assert "<|im_start|>user\nWhat is 0 and 0?<|im_end|>\n<|im_start|>assistant\n⟦It is 0.<|im_end|>⟧\n" in text
    assert "⟦It is 2.<|im_end|>⟧" in text
    assert "What is 2 and 2?" not in text, "two rows were requested"
    assert "\x1b[" not in text


def test_new_tokens_shorten_sequences(project):
    rows = tiny.alpaca_rows(20)
    plain = as_json(project(rows), "--rows", "1")
    with_new_tokens = as_json(project(rows, load={"new_tokens": ["What is"]}), "--rows", "1")

    lengths = [output["sources"][0]["shown"][0]["tokens"] for output in (plain, with_new_tokens)]
    assert lengths[1] < lengths[0]


def test_trained_text_is_colored_on_a_terminal(project, monkeypatch):
    monkeypatch.setattr(show, "console", lambda: Console(force_terminal=True, color_system="standard", width=200))
    monkeypatch.delenv("NO_COLOR", raising=False)

    text = preview_text(project(tiny.alpaca_rows(20)), "--rows", "1")

    assert "\x1b[32mIt is 0.\x1b[0m\x1b[1;32m<|im_end|>\x1b[0m" in text
    assert "⟦" not in text


def test_json_has_the_content_of_the_page(project):
    (source,) = as_json(project(tiny.alpaca_rows(20)), "--rows", "3")["sources"]

    assert (source["name"], source["format"], source["format_found"]) == ("mine", "alpaca", True)
    assert (source["rows"], source["all_rows"], source["kinds"]) == (20, True, {"chat": 20})
    assert len(source["shown"]) == 3
    for sequence in source["shown"]:
        assert "".join(part["text"] for part in sequence["parts"] if part["trained"]).endswith(".<|im_end|>")
    assert sum(source["lengths"]["counts"]) == 20
    assert 0 < source["coverage"] < 1
    assert 0 < source["fill"] <= 1
    assert source["rendering"].startswith("compiled template")


def test_dropped_rows_are_counted_with_their_locations(project):
    recipe = project([*tiny.alpaca_rows(20), BAD], align={"bad_rows": "drop"})

    (source,) = as_json(recipe)["sources"]

    assert source["bad_rows"] == {"empty assistant turn": 1}
    assert source["first_bad_rows"][0].startswith("rows.jsonl:21: ")
    assert "rows.jsonl:21: " in preview_text(recipe)


def test_a_bad_row_is_the_same_error_as_in_a_run(project, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["tuneline", "data", "preview", str(project([*tiny.alpaca_rows(5), BAD]))])

    with pytest.raises(SystemExit) as caught:
        main()

    assert caught.value.code == 2
    assert "rows.jsonl:6: turn 2 (assistant) is empty. Fix the row" in capsys.readouterr().err


def test_overlong_rows_are_shown_in_full_before_the_error(project):
    result = run(project([*tiny.alpaca_rows(20), LONG]), "--json")

    (source,) = json.loads(result.stdout)["sources"]
    assert isinstance(result.exception, DataError)
    assert "more than tokenize.max_length 256" in str(result.exception)
    assert (source["too_long"], source["sequences"]) == (1, 21)
    assert source["tokens_a_sequence"]["longest"] > 1000
    assert source["lengths"]["edges"][-2] == 257, "overlong rows have a separate bin"
    assert "fill" not in source


@pytest.mark.parametrize(("policy", "cut", "dropped"), [("drop", 0, 1), ("right", 1, 0), ("split", 1, 0)])
def test_overlong_rows_are_counted_by_policy(project, policy, cut, dropped):
    recipe = project([*tiny.alpaca_rows(20), LONG], tokenize={"max_length": 256, "overlong": policy})

    (source,) = as_json(recipe)["sources"]

    assert (source["cut"], source["dropped_for_length"], source["too_long"]) == (cut, dropped, 1)
    assert source["tokens_a_sequence"]["longest"] > 1000, "lengths are those before truncation"


def test_too_many_truncated_rows_are_an_error_after_the_page(project):
    recipe = project([*tiny.alpaca_rows(5), LONG], tokenize={"max_length": 256, "overlong": "drop"})

    result = run(recipe)

    assert "tokenize.max_cut_fraction" in str(result.exception)
    assert "1 of 6 sequences have more than max_length 256; overlong: drop (1 dropped)" in result.stdout


def test_only_the_first_rows_are_read(project, monkeypatch):
    from tuneline.data.preview import sample_rows

    monkeypatch.setattr(sample_rows, "NUM_SAMPLE_ROWS", 7)
    recipe = project(tiny.alpaca_rows(20))
    with Path(recipe.parent / "rows.jsonl").open("a") as file:
        file.write("{torn")

    (source,) = as_json(recipe)["sources"]

    assert (source["rows"], source["all_rows"]) == (7, False)
    assert "the first 7 rows" in preview_text(recipe)


def test_rows_beyond_max_rows_are_not_read(project):
    (source,) = as_json(project(tiny.alpaca_rows(20), source={"max_rows": 4}))["sources"]

    assert (source["rows"], source["all_rows"]) == (4, True)


def test_a_single_dataset_can_be_previewed(project_template, home):
    config = project_template / "run.yaml"

    assert [source["name"] for source in as_json(config, "--source", "second")["sources"]] == ["second"]
    assert isinstance(run(config, "--source", "secnd").exception, NotFoundError)
    assert "Did you mean 'second'?" in str(run(config, "--source", "secnd").exception)


def test_pairs_are_refused_by_a_recipe_that_trains_chats(project):
    pairs = [{"prompt": "a", "chosen": "b", "rejected": "c"}] * 5

    assert "kind preference; stage sft trains on chat or text" in str(run(project(pairs)).exception)


def test_tool_calls_that_the_template_omits_are_refused_as_in_a_run(project):
    call = {"function": {"name": "add", "arguments": {"a": 2}}}
    messages = [
        {"role": "user", "content": "2?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "2"},
        {"role": "assistant", "content": "Two."},
    ]

    assert "has tool calls, and the chat template silently omits" in str(
        run(project([{"messages": messages}])).exception
    )
    assert "trained" in preview_text(project([{"messages": messages}], template="qwen"))


def test_the_page_has_marked_sequences_line_breaks_and_counts(project, tmp_path):
    rows = [{"instruction": "<b>&\nWhat?", "output": "one\ntwo"}, *tiny.alpaca_rows(20)]

    preview_text(project(rows), "--html", tmp_path / "page.html")

    page = (tmp_path / "page.html").read_text()
    assert "&lt;b&gt;&amp;<i></i>\nWhat?" in page
    assert "<mark>one<i></i>\ntwo</mark><mark><b>&lt;|im_end|&gt;</b></mark>" in page
    assert "alpaca, detected automatically; 21 chat" in page
    assert "class=bar" in page


def test_control_characters_are_shown_as_symbols(project):
    text = preview_text(project([{"instruction": "a\x1b[31m\rb", "output": "ok"}, *tiny.alpaca_rows(5)]))

    assert "a␛[31m␍b" in text


def test_a_long_sequence_is_shortened_on_the_terminal():
    long = [TextSpan("a" * 3000, False, False), TextSpan("b" * 4000, True, False), TextSpan("<end>", True, True)]

    text = preview._mark_text(long)

    assert text == f"{'a' * 2000} […4,005 characters…] ⟦{'b' * 995}<end>⟧"
    assert preview._mark_text([TextSpan("a" * 4000, False, False)]) == "a" * 4000


def test_a_preview_imports_no_zenml(project):
    code = "import sys; sys.modules['zenml'] = None; from tuneline.cli.main import main; main()"
    recipe = project(tiny.alpaca_rows(5))

    run = subprocess.run([sys.executable, "-c", code, "data", "preview", str(recipe)], capture_output=True, text=True)

    assert run.returncode == 0, run.stderr
    assert "⟦It is 0.<|im_end|>⟧" in run.stdout
