"""What users wrote is shown letter by letter: rich's markup and emoji names are none of theirs."""

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

NASTY = "fix [/b] [bold]now[/] :smile: [link=x] \\["
CLI = sorted(Path(show.__file__).parent.glob("*.py"))


def decision():
    from tests.promotions import finding

    checks = [Check(name=NASTY, passed=False, sentence=NASTY)]
    found = finding(against=NASTY)
    return Decision(
        model_name=NASTY,
        version="1",
        new=True,
        promoted=False,
        aliases=[],
        sentence=NASTY,
        findings=[found],
        checks=checks,
    )


def outcome():
    steps = [SimpleNamespace(name=NASTY, status="ran", seconds=1.0)]
    report = SimpleNamespace(metrics=dict)
    return SimpleNamespace(
        steps=steps, pipeline=NASTY, run_name=NASTY, report=report, decision=decision(), model_folder=NASTY
    )


@pytest.mark.parametrize(
    "act",
    [
        lambda: show.print_rows(NASTY, [{NASTY: NASTY}], [NASTY], as_json=False, empty=""),
        lambda: show.print_rows("", [], [], as_json=False, empty=NASTY),
        lambda: show.console().print(NASTY, soft_wrap=True),
        lambda: show.stderr_console().print(NASTY, soft_wrap=True),
        lambda: models.print_findings(decision()),
        lambda: train._show_outcome(outcome()),
        lambda: show.console().print(sweeps._table(NASTY, NASTY, [SettingResult(NASTY, [], [1.0], NASTY)])),
        lambda: runs._print_examples(
            [dict.fromkeys(("metric", "run", "scores", "prompt", "first", "this"), NASTY) | {"change": "won"}],
            {NASTY: "B"},
            show.console(),
        ),
        lambda: imports._print_report(
            SimpleNamespace(path=NASTY, report=SimpleNamespace(lines=lambda: [NASTY]), config=None)
        ),
    ],
    ids=["table", "nothing", "print", "stderr", "findings", "outcome", "sweep", "examples", "import"],
)
def test_what_users_wrote_is_shown_as_it_is(act, capsys, monkeypatch):
    monkeypatch.setattr(show, "FILE_WIDTH", 2000)
    monkeypatch.setenv("COLUMNS", "2000")

    act()

    shown = capsys.readouterr()
    assert NASTY in shown.out + shown.err


def test_a_sign_of_life_shows_names_as_they_are(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "2000")
    with show.status(NASTY) as status:
        status.console.print(status.renderable)

    assert NASTY in capsys.readouterr().err


def test_a_bar_shows_names_as_they_are(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "2000")
    with progress._rich_bar(NASTY, 2) as advance:
        advance(2, NASTY)

    assert capsys.readouterr().err.count(NASTY) >= 2


def test_a_reason_with_brackets_can_be_read_in_the_history(home, capsys):
    ledger.append("m", "champion", None, "1", NASTY)

    models.history()

    assert "[/b]" in capsys.readouterr().out


@pytest.mark.parametrize("path", [path for path in CLI if path.name != "show.py"], ids=lambda path: path.stem)
def test_consoles_and_signs_of_life_are_made_in_one_place(path):
    calls = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    names = {call.id for call in calls if isinstance(call, ast.Name)}
    statuses = {ast.unparse(call) for call in calls if isinstance(call, ast.Attribute) and call.attr == "status"}

    assert "Console" not in names
    assert statuses <= {"show.status"}
