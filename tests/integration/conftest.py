"""The `run` fixture of tests/pipelines."""

from tests.pipelines.conftest import run

__all__ = ["run"]
