"""Text of users is shown unchanged: rich markup and emoji names in it are not interpreted."""

import ast
from pathlib import Path
from types import SimpleNamespace

import pytest

from tuneline import progress
from tuneline.cli import imports, models, runs, show, sweeps, train
from tuneline.tracking import ledger
from tuneline.tracking.decision import Decision
from tuneline.tracking.evidence import Check
from tuneline.tracking.experiments.sweep import SettingResult

MARKUP = "fix [/b] [bold]now[/] :smile: [link=x] \\["
CLI = sorted(Path(show.__file__).parent.glob("*.py"))


def decision():
    from tests.promotions import finding

    checks = [Check(name=MARKUP, passed=False, sentence=MARKUP)]
    gate_finding = finding(against=MARKUP)
    return Decision(
        model_name=MARKUP,
        version="1",
        new=True,
        promoted=False,
        aliases=[],
        sentence=MARKUP,
        findings=[gate_finding],
        checks=checks,
    )


def outcome():
    steps = [SimpleNamespace(name=MARKUP, status="ran", seconds=1.0)]
    report = SimpleNamespace(metrics=dict)
    return SimpleNamespace(
        steps=steps, pipeline=MARKUP, run_name=MARKUP, report=report, decision=decision(), model_folder=MARKUP
    )


@pytest.mark.parametrize(
    "operation",
    [
        lambda: show.print_rows(MARKUP, [{MARKUP: MARKUP}], [MARKUP], as_json=False, empty=""),
        lambda: show.print_rows("", [], [], as_json=False, empty=MARKUP),
        lambda: show.console().print(MARKUP, soft_wrap=True),
        lambda: show.stderr_console().print(MARKUP, soft_wrap=True),
        lambda: models.print_findings(decision()),
        lambda: train._show_outcome(outcome()),
        lambda: show.console().print(sweeps._table(MARKUP, MARKUP, [SettingResult(MARKUP, [], [1.0], MARKUP)])),
        lambda: runs._print_examples(
            [dict.fromkeys(("metric", "run", "scores", "prompt", "first", "this"), MARKUP) | {"change": "won"}],
            {MARKUP: "B"},
            show.console(),
        ),
        lambda: imports._print_report(
            SimpleNamespace(path=MARKUP, report=SimpleNamespace(lines=lambda: [MARKUP]), config=None)
        ),
    ],
    ids=["table", "nothing", "print", "stderr", "findings", "outcome", "sweep", "examples", "import"],
)
def test_user_text_is_shown_unchanged(operation, capsys, monkeypatch):
    monkeypatch.setattr(show, "FILE_WIDTH", 2000)
    monkeypatch.setenv("COLUMNS", "2000")

    operation()

    captured = capsys.readouterr()
    assert MARKUP in captured.out + captured.err


def test_a_status_line_shows_names_unchanged(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "2000")
    with show.status(MARKUP) as status:
        status.console.print(status.renderable)

    assert MARKUP in capsys.readouterr().err


def test_a_progress_bar_shows_names_unchanged(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "2000")
    with progress._rich_bar(MARKUP, 2) as advance:
        advance(2, MARKUP)

    assert capsys.readouterr().err.count(MARKUP) >= 2


def test_the_history_shows_reasons_with_brackets(home, capsys):
    ledger.append("m", "champion", None, "1", MARKUP)

    models.history()

    assert "[/b]" in capsys.readouterr().out


@pytest.mark.parametrize("path", [path for path in CLI if path.name != "show.py"], ids=lambda path: path.stem)
def test_consoles_and_status_lines_are_created_in_one_module(path):
    calls = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    names = {call.id for call in calls if isinstance(call, ast.Name)}
    statuses = {ast.unparse(call) for call in calls if isinstance(call, ast.Attribute) and call.attr == "status"}

    assert "Console" not in names
    assert statuses <= {"show.status"}
