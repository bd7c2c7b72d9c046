"""Versions are found by number, alias and content, with thousands of versions."""

import mlflow
import pytest

from tests import mlflow_rows
from tuneline.errors import NotFoundError
from tuneline.tracking import compare, registry

MANY = 1200
"""More than one page of MLflow's searches."""


@pytest.fixture(scope="module")
def database(own_server):
    """A model with many versions, of which the oldest is champion."""
    client = mlflow.MlflowClient()
    client.create_registered_model("many")
    file = own_server / "mlflow.db"
    mlflow_rows.insert_versions(file, "many", MANY)
    client.set_registered_model_alias("many", "champion", "3")
    return file


def test_the_champion_is_found_among_a_thousand_versions(database):
    assert (registry.get_champion("many").version, registry.get_champion("many").aliases) == ("3", ("champion",))
    assert registry.get_champion("nobody") is None
    assert (
        registry.find_version("many", "champion") == registry.find_version("many", "3") == registry.get_champion("many")
    )


def test_every_version_is_listed_newest_first(database):
    listed = registry.list_versions("many")

    assert [version.version for version in listed] == [str(number) for number in range(MANY, 0, -1)]
    assert [version.version for version in listed if version.aliases] == ["3"]
    assert [version.version for version in registry.list_versions("many", most=2)] == [str(MANY), str(MANY - 1)]


def test_recent_versions_include_older_ones_with_an_alias(database):
    for name in ("many", None):
        assert [version.version for version in registry.list_recent(name, 2)] == [str(MANY), str(MANY - 1), "3"]


def test_known_content_is_registered_once_among_a_thousand_versions(database, home):
    version, new = registry.register("many", "content 2", "file:///nowhere", "no run", {})

    assert (version.version, new) == ("2", False)
    assert [version.version for version in registry.find_by_content("content 7")] == ["7"]
    assert registry.find_by_content("it's") == []


@pytest.mark.parametrize("label", ["0", "99999", "1" * 30, "champoin", "v3", "it's", ""])
def test_an_unknown_version_is_reported_with_the_newest_ones(database, label):
    with pytest.raises(NotFoundError, match="version of many") as error:
        registry.find_version("many", label)
    assert "champion" in str(error.value)
    assert str(MANY) in str(error.value)
    assert len(str(error.value)) < 500


def test_an_unknown_model_is_reported_with_the_known_ones(database):
    for name in ("nobody", "it's", "a/b"):
        with pytest.raises(NotFoundError, match=r"Unknown model .* Known: many"):
            registry.find_version(name, "champion")


def test_runs_are_found_among_a_thousand_others(own_server):
    client = mlflow.MlflowClient()
    experiment = client.create_experiment("many runs")
    run = client.create_run(experiment, run_name="the old one", tags={"tuneline.kind": "pipeline"})
    mlflow_rows.insert_runs(own_server / "mlflow.db", run.info.run_id, MANY)

    for name in ("the old one", run.info.run_id, run.info.run_id[:8]):
        assert compare.find_run(name).info.run_id == run.info.run_id
    with pytest.raises(NotFoundError, match=f"Unknown run 'the odd one'.*run {MANY - 1}") as error:
        compare.find_run("the odd one")
    assert len(str(error.value)) < 1500
