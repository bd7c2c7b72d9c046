"""`python -m tuneline.runner.fire_schedule SCHEDULE_ID [FILE]`: run a schedule's pipeline now, from the current source.

The exit code is also written to FILE, so that a scheduler that starts later can read it. A run that was stopped by a
signal writes none, because the scheduler starts it again.
"""

import sys
from pathlib import Path

from pydantic import ValidationError

from tuneline import filesystem, signals
from tuneline.config.stages import ALL_RECIPES, RunRecipe
from tuneline.errors import RecipeError, StoppedError, TunelineError
from tuneline.zenml_integration import schedules


def fire(schedule_id: str) -> str:
    """Run the pipeline that was submitted with a schedule, now.

    Returns:
        The result in one line.

    Raises:
        NotFoundError: The pipeline of the schedule was deleted.
        RecipeError: The recorded recipe is no longer valid.
    """
    from tuneline.runner import package_resolution
    from tuneline.runner.start import ExportOutcome, read_outcome

    snapshot = schedules.latest_snapshot(schedule_id)
    configuration = snapshot.pipeline_configuration
    recipe = _recipe(snapshot.pipeline_spec.parameters.get("recipe"), schedule_id)
    options = package_resolution.get_pipeline(configuration.name).with_options(
        run_name=f"{configuration.name}-scheduled-{{date}}-{{time}}",
        enable_cache=configuration.enable_cache,
        tags=["scheduled"],
    )
    run = options(recipe=recipe)
    outcome = read_outcome(run)
    if isinstance(outcome, ExportOutcome):
        return f"{run.name}: {outcome.sentence()}"
    decision = outcome.decision
    return f"{run.name}: {decision.model_name} version {decision.version}: {decision.sentence}"


def _recipe(raw: object, schedule_id: str) -> RunRecipe:
    stage = raw.get("stage") if isinstance(raw, dict) else None
    try:
        return ALL_RECIPES[stage].model_validate(raw)  # type: ignore[index]
    except KeyError:
        problem = f"stage {stage!r} is unknown"
    except ValidationError as error:
        first = error.errors()[0]
        problem = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    raise RecipeError(
        f"Schedule {schedule_id} has a recipe that is not valid in this version: {problem}. Record it again: "
        "tuneline schedule FILE."
    )


def main() -> int:
    """Run the schedule; an error in the recipe is one line and exit code 2."""
    code = signals.run_command(_fire_and_record)
    sys.stdout.flush()
    return code


def _fire_and_record() -> None:
    try:
        sys.stdout.write(f"{fire(sys.argv[1])}\n")
    except TunelineError as error:
        if not any(isinstance(cause, StoppedError) for cause in (error, error.__cause__)):
            _write_code(error.exit_code)
        raise
    except Exception:
        _write_code(1)
        raise
    _write_code(0)


def _write_code(code: int) -> None:
    for path in map(Path, sys.argv[2:3]):
        filesystem.write_atomic(path, str(code))


if __name__ == "__main__":
    sys.exit(main())
