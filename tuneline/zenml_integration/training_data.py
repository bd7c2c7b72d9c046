"""Finds the data that a registered version was trained on, in the artifacts of its run."""

from dataclasses import dataclass
from uuid import UUID

from zenml.client import Client

from tuneline.data.corpus import Corpus
from tuneline.errors import NotFoundError, one_line
from tuneline.tracking.registry import Version

RUN_TAG = "zenml.run_id"
OUTPUTS = {"merge": "mixture", "tokenize_pack": "rows"}
"""Step -> output."""


@dataclass(frozen=True)
class TrainingData:
    """Data of a training run."""

    mixture: Corpus
    """Messages of all examples."""

    rows: Corpus
    """Token ids of all examples."""


def load_training_data(version: Version) -> TrainingData:
    """Load the data of the run that produced a version.

    Raises:
        NotFoundError: The version has no run, or the run or one of its artifacts was deleted.
    """
    run_id = version.tags.get(RUN_TAG)
    if not run_id:
        raise NotFoundError(f"{version.name} version {version.version} was not registered by a run of Tuneline.")
    try:
        steps = Client().get_pipeline_run(UUID(run_id)).steps
        mixture, rows = (steps[step].outputs[name][0].load() for step, name in OUTPUTS.items())
    except Exception as error:  # ZenML and artifact stores raise many kinds
        raise NotFoundError(
            f"The training rows of {version.name} version {version.version} (run {run_id}) cannot be loaded: "
            f"{one_line(error)}"
        ) from error
    return TrainingData(mixture, rows)
