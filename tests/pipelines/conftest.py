"""Fixtures that run pipelines and read their outcome; all runs share one process because ZenML starts slowly."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import tiny
from tuneline.runner.start import Outcome


@pytest.fixture(scope="module")
def run(project: Path) -> Callable[..., Outcome]:
    """Return a function that runs a pipeline on the small recipe; keyword arguments replace its keys."""
    import importlib

    from tuneline.runner.start import read_training_outcome

    def start(pipeline: str = "sft_pipeline", use_cache: bool = True, **changes: object) -> Outcome:
        path = tiny.write_config(project / "changed.yaml", tiny.recipe(**changes))
        options = {} if use_cache else {"enable_cache": False}
        definition = getattr(importlib.import_module("pipelines"), pipeline)
        return read_training_outcome(definition.with_options(config_path=str(path), **options)())

    assert os.environ["ZENML_CONFIG_PATH"]
    return start


@pytest.fixture
def executed_steps() -> Callable[[Outcome], set[str]]:
    """Return a function that lists the executed steps, except `resolve` and `register`, which are never cached."""

    def names(outcome: Outcome) -> set[str]:
        return {step.name for step in outcome.steps if step.status != "cached"} - {"resolve", "register"}

    return names
