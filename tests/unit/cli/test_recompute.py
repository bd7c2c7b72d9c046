"""`tuneline run --recompute STEP` accepts only steps of the recipe."""

from typer.testing import CliRunner

from tests import tiny
from tuneline.cli.app import app
from tuneline.errors import NotFoundError


def test_an_unknown_step_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny.build_project(tmp_path)

    outcome = CliRunner().invoke(app, ["run", "run.yaml", "--recompute", "merge_adaptor"])

    assert isinstance(outcome.exception, NotFoundError)
    assert "Unknown step 'merge_adaptor'. Did you mean 'merge_adapter'?" in str(outcome.exception)
