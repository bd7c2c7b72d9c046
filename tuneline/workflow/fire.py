"""`python -m tuneline.workflow.fire SCHEDULE_ID`: run a schedule's pipeline now, compiled from today's source."""

import importlib
import sys

from tuneline.config.stages import RUNS
from tuneline.errors import TunelineError
from tuneline.workflow import schedules


def fire(schedule_id: str) -> str:
    """Run the pipeline that was submitted with a schedule, without the schedule.

    Returns:
        What became of it, in one line.
    """
    from tuneline.workflow.start import Exported, result

    snapshot = schedules.snapshot_of(schedule_id)
    configuration = snapshot.pipeline_configuration
    pipeline = getattr(importlib.import_module("pipelines"), configuration.name)
    options = pipeline.with_options(
        run_name=f"{configuration.name}-scheduled-{{date}}-{{time}}",
        enable_cache=configuration.enable_cache,
        tags=["scheduled"],
    )
    raw = snapshot.pipeline_spec.parameters["recipe"]
    run = options(recipe=RUNS[raw["stage"]].model_validate(raw))
    found = result(run)
    if isinstance(found, Exported):
        return f"{run.name}: {found.sentence()}"
    decision = found.decision
    return f"{run.name}: {decision.model_name} version {decision.version}: {decision.sentence}"


def main() -> int:
    """Fire; an error of the user's is one line and exit code 2."""
    try:
        line = fire(sys.argv[1])
    except TunelineError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    sys.stdout.write(f"{line}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
