"""Commands that only list or look up import no heavy library, and show what ZenML's and MLflow's clients return."""

import subprocess
import sys
from pathlib import Path

import pytest

CONFIGS = Path(__file__).parents[3] / "configs"
HEAVY = ("torch", "transformers", "mlflow", "zenml", "datasets", "peft", "trl", "pandas", "sqlalchemy", "matplotlib")
LISTINGS = [
    ["models"],
    ["models", "tiny", "--json"],
    ["history"],
    ["runs"],
    ["card", "tiny", "1"],
    ["schedule"],
    ["plan", "run.yaml"],
    ["--help"],
    ["data", "list", str(CONFIGS / "datasets.yaml")],
]
SCRIPT = """
import sys
from tuneline.cli.main import main
try:
    main()
except SystemExit as end:
    print(end.code, [name for name in {heavy!r} if name in sys.modules])
"""


def run(arguments, folder):
    """Run a command in a separate process; return its output, and the last line: exit code and heavy imports."""
    script = SCRIPT.format(heavy=HEAVY)
    process = subprocess.run(
        [sys.executable, "-c", script, *arguments], cwd=folder, capture_output=True, text=True, timeout=120, check=False
    )
    *lines, last = process.stdout.splitlines() or [process.stderr]
    return "\n".join(lines), last


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["run", "--help"],
        ["chat", "--help"],
        ["serve", "--help"],
        ["predict", "--help"],
        ["plan", str(CONFIGS / "demo.yaml")],
        LISTINGS[-1],
    ],
    ids=" ".join,
)
def test_help_and_recipes_import_no_heavy_library(arguments, tmp_path):
    assert run(arguments, CONFIGS.parent)[1] == "0 []"


@pytest.mark.zenml
@pytest.mark.parametrize("arguments", LISTINGS, ids=" ".join)
def test_listings_import_no_heavy_library(finished_run, arguments):
    assert run(arguments, finished_run)[1] == "0 []"


@pytest.mark.zenml
def test_listings_agree_with_the_clients_of_zenml_and_mlflow(finished_run):
    from tuneline.runner import listings

    sqlite = (
        [version_fields(version) for version in listings._sqlite_models(None, None).versions],
        [version_fields(version) for version in listings._sqlite_models("tiny", 1).versions],
        listings._sqlite_card("tiny", "challenger"),
        listings._sqlite_runs(20),
        listings._sqlite_schedules(),
    )
    clients = (
        [version_fields(version) for version in listings._client_models(None, None).versions],
        [version_fields(version) for version in listings._client_models("tiny", 1).versions],
        listings._client_card("tiny", "challenger"),
        listings._client_runs(20),
        listings.schedules.list_schedules(),
    )

    assert sqlite == clients
    assert len(sqlite[0]) == 2
    assert len(sqlite[1]) == 2, "the newest, and the older one that is champion"
    assert sqlite[3][0]["steps_run"] > 0
    assert [schedule.name for schedule in sqlite[4]] == ["listed"]


def version_fields(version):
    return {
        name: getattr(version, name)
        for name in ("name", "version", "aliases", "content_hash", "source", "run_id", "tags")
    }


@pytest.mark.zenml
@pytest.mark.parametrize(
    "break_store",
    [
        lambda monkeypatch, listings: monkeypatch.setenv("ZENML_STORE_POOL_SIZE", "20"),
        lambda monkeypatch, listings: monkeypatch.setattr(listings.sqlite_store, "SCHEMA", "0.0.1"),
        lambda monkeypatch, listings: monkeypatch.setattr(listings, "SCHEMA", "other"),
    ],
    ids=["an environment variable of ZenML", "another schema of ZenML", "another schema of MLflow"],
)
def test_other_stores_are_read_by_the_clients(finished_run, monkeypatch, break_store):
    from tuneline.runner import listings

    expected = [version_fields(version) for version in listings._sqlite_models("tiny", None).versions]
    break_store(monkeypatch, listings)

    with pytest.raises(listings.UnsupportedStoreError):
        listings._sqlite_models("tiny", None)
    assert [version_fields(version) for version in listings.models("tiny", None).versions] == expected


@pytest.mark.zenml
def test_a_version_that_is_not_registered_is_refused_with_the_known_ones(finished_run):
    from tuneline.errors import NotFoundError
    from tuneline.runner import listings

    with pytest.raises(NotFoundError, match="Unknown version of tiny '7'.*Known: .*1, 2"):
        listings.card("tiny", "7")


@pytest.fixture(scope="module")
def finished_run(project):
    """A project with two versions of a model, the older one champion, and a schedule."""
    from typer.testing import CliRunner

    from tests import tiny
    from tuneline.cli.app import app

    recipe = tiny.recipe(train={**tiny.recipe()["train"], "learning_rate": 0.1})
    scheduled = tiny.write_config(
        project / "listed.yaml", recipe, schedule={"cron_expression": "0 3 * * *", "name": "listed"}
    )
    for arguments in (
        ["run", "run.yaml"],
        ["run", str(tiny.write_config(project / "faster.yaml", recipe))],
        ["promote", "tiny", "1", "--force", "--reason", "an older champion"],
        ["schedule", str(scheduled)],
        ["schedule", str(scheduled)],  # replaces the first one, which ZenML keeps as archived
    ):
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, (result.output, result.exception)
    return project
