"""Fixtures of the tests of checkpoints."""

import pytest

from tests.unit.train.checkpoint.trainings import parts_of, run_training, weights


@pytest.fixture
def parts(tiny_model, home):
    return parts_of(tiny_model)


@pytest.fixture(scope="module")
def uninterrupted(tiny_model, tmp_path_factory):
    """Weights and report of an uninterrupted training."""
    with pytest.MonkeyPatch.context() as env:
        env.setenv("TUNELINE_HOME", str(tmp_path_factory.mktemp("uninterrupted")))
        checkpoint, report = run_training(parts_of(tiny_model))
        return weights(checkpoint), report
