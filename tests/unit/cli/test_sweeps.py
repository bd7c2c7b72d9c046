"""Options of `tuneline sweep` that do not go together are refused before anything is read."""

import pytest
from typer.testing import CliRunner

from tuneline.cli.app import app
from tuneline.errors import RecipeError


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--search", "method.r={2,4}"], "--search needs --trials, the number of trials"),
        (
            ["--search", "method.r={2,4}", "--set", "method.r=2", "--trials", "3"],
            "--search and --set cannot be combined. Remove one of them.",
        ),
        (["--set", "method.r=2,4", "--sampler", "tpe"], "--sampler is for a search"),
        (["--set", "method.r=2,4", "--trials", "3"], "--trials is for a search"),
        (["--seeds", "0"], "--seeds 0: a setting needs one run at least"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options, told):
    outcome = CliRunner().invoke(app, ["sweep", "run.yaml", *options])

    assert isinstance(outcome.exception, RecipeError)
    assert told in str(outcome.exception)
