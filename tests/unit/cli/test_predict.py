"""`tuneline predict`: options, output for people, and exit codes."""

import json

import pytest
from typer.testing import CliRunner

from tests import openai_server, tiny
from tuneline.cli.app import app
from tuneline.errors import NotFoundError, RecipeError


@pytest.fixture
def folder(tmp_path, home, tiny_model, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny.write_jsonl(tmp_path / "rows.jsonl", tiny.alpaca_rows(6))
    (tmp_path / "model").symlink_to(tiny_model)
    return tmp_path


def run(*words):
    result = CliRunner().invoke(app, ["predict", *words])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_a_folder_answers_a_file_and_scores_it(folder):
    words = ["rows.jsonl", "--model", "model", "-o", "out.jsonl", "--max-new-tokens", "4", "--metric", "exact_match"]
    first, second = run(*words), run(*words)

    assert "Answers  6: out.jsonl" in first.stdout
    assert "Scores   6 of 6 answers have a reference; 95 % intervals" in first.stdout
    assert "exact_match" in first.stdout
    assert "rouge1" not in first.stdout
    assert "File     out.scores.json" in first.stdout
    assert "Answers  6, 6 of them from an earlier run: out.jsonl" in second.stdout
    lines = [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()]
    assert [line["reference"] for line in lines] == [row["output"] for row in tiny.alpaca_rows(6)]
    settings = json.loads((folder / "out.meta.json").read_text())["settings"]
    assert (settings["model"], settings["max_new_tokens"], settings["dtype"]) == ("model", 4, "float32")


def test_a_server_answers_with_own_columns_and_dropped_rows(folder):
    rows = [{"question": "Q?", "reply": "A."}, {"question": "", "reply": "A."}, {"question": "R?", "reply": "B."}]
    tiny.write_jsonl(folder / "qa.jsonl", rows)
    with openai_server.serve(openai_server.echo) as server:
        options = ["--columns", "instruction=question,output=reply", "--bad-rows", "drop", "--system", "Be brief."]
        result = run("qa.jsonl", "--url", server.url, "-o", "out.jsonl", *options)

    assert "Dropped  1 rows (empty user turn: 1)" in result.stdout
    assert "qa.jsonl:2: " in result.stdout
    assert [body["messages"][0]["content"] for body in server.requests] == ["Be brief."] * 2
    assert [json.loads(line)["answer"] for line in (folder / "out.jsonl").read_text().splitlines()] == [
        "You said: Q?",
        "You said: R?",
    ]


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        ((), RecipeError, "Expected --model or --url"),
        (("-m", "model", "--temperature", "-1"), RecipeError, "--temperature: Input should be greater"),
        (("-m", "model", "--max-new-tokens", "0"), RecipeError, "--max-new-tokens: Input should be greater"),
        (("-m", "model", "--format", "alpacca"), RecipeError, "unknown format 'alpacca'"),
        (("-m", "model", "--columns", "x=y"), NotFoundError, "Unknown column of a format 'x'"),
        (("-m", "model", "--metric", "rogue"), RecipeError, "unknown metric 'rogue'"),
        (("-m", "no such model"), RecipeError, "'no such model' is neither"),
    ],
)
def test_wrong_options_are_refused(folder, words, error, message):
    with pytest.raises(error, match=message):
        run("rows.jsonl", "-o", "out.jsonl", *words)
    assert not (folder / "out.jsonl").exists()


def test_rows_without_references_are_not_scored(folder):
    tiny.write_jsonl(folder / "open.jsonl", [{"instruction": "Q?"}])
    result = run("open.jsonl", "-m", "model", "-o", "out.jsonl", "--max-new-tokens", "2")

    assert "Scores   none: no row has a reference" in result.stdout
    assert not (folder / "out.scores.json").exists()
