"""Incompatible options of `tuneline sweep` are refused before the recipe is read."""

import pytest
from typer.testing import CliRunner

from tuneline.cli.app import app
from tuneline.errors import RecipeError


@pytest.mark.parametrize(
    ("options", "message"),
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
def test_incompatible_options_are_refused(options, message):
    outcome = CliRunner().invoke(app, ["sweep", "run.yaml", *options])

    assert isinstance(outcome.exception, RecipeError)
    assert message in str(outcome.exception)
