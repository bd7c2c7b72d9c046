"""The runner of pipelines that tests/pipelines has."""

from tests.pipelines.conftest import run

__all__ = ["run"]
