"""How pipeline tests run the line and read what became of it: many runs in one process, as ZenML's start-up is slow."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import tiny
from tuneline.runner.start import Outcome


@pytest.fixture(scope="module")
def run(project: Path) -> Callable[..., Outcome]:
    """Run a pipeline on a recipe made of the small one; keyword arguments replace its parts."""
    import importlib

    from tuneline.runner.start import read_training_outcome

    def start(pipeline: str = "sft_pipeline", use_cache: bool = True, **changes: object) -> Outcome:
        path = tiny.write_config(project / "changed.yaml", tiny.recipe(**changes))
        options = {} if use_cache else {"enable_cache": False}
        made = getattr(importlib.import_module("pipelines"), pipeline)
        return read_training_outcome(made.with_options(config_path=str(path), **options)())

    assert os.environ["ZENML_CONFIG_PATH"]
    return start


@pytest.fixture
def ran() -> Callable[[Outcome], set[str]]:
    """Return the steps that were not cached, but for the two ends that never are."""

    def names(outcome: Outcome) -> set[str]:
        return {step.name for step in outcome.steps if step.status != "cached"} - {"resolve", "register"}

    return names
