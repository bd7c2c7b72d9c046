"""`python -m tuneline.runner.fire_schedule SCHEDULE_ID [FILE]`: run a schedule's pipeline now, from the current source.

The exit code is also written to FILE, for a scheduler that was started meanwhile; a run that a signal stopped writes
none, as it is to be started again.
"""

import sys
from pathlib import Path

from pydantic import ValidationError

from tuneline import filesystem, signals
from tuneline.config.stages import ALL_RECIPES, RunRecipe
from tuneline.errors import RecipeError, StoppedError, TunelineError
from tuneline.zenml_integration import schedules


def fire(schedule_id: str) -> str:
    """Run the pipeline that was submitted with a schedule, without the schedule.

    Returns:
        What became of it, in one line.

    Raises:
        NotFoundError: The schedule's pipeline is gone.
        RecipeError: The recipe that was recorded is not valid any more.
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
    found = read_outcome(run)
    if isinstance(found, ExportOutcome):
        return f"{run.name}: {found.sentence()}"
    decision = found.decision
    return f"{run.name}: {decision.model_name} version {decision.version}: {decision.sentence}"


def _recipe(raw: object, schedule_id: str) -> RunRecipe:
    stage = raw.get("stage") if isinstance(raw, dict) else None
    try:
        return ALL_RECIPES[stage].model_validate(raw)  # type: ignore[index]
    except KeyError:
        said = f"stage {stage!r} is unknown"
    except ValidationError as error:
        first = error.errors()[0]
        said = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    raise RecipeError(
        f"Schedule {schedule_id} was recorded with a recipe that this version does not take: {said}. Record it again: "
        "tuneline schedule FILE."
    )


def main() -> int:
    """Fire; an error of the user's is one line and exit code 2."""
    code = signals.run_command(_fire_and_note)
    sys.stdout.flush()
    return code


def _fire_and_note() -> None:
    try:
        sys.stdout.write(f"{fire(sys.argv[1])}\n")
    except TunelineError as error:
        if not any(isinstance(each, StoppedError) for each in (error, error.__cause__)):
            _note(error.exit_code)
        raise
    except Exception:
        _note(1)
        raise
    _note(0)


def _note(code: int) -> None:
    for path in map(Path, sys.argv[2:3]):
        filesystem.write_atomic(path, str(code))


if __name__ == "__main__":
    sys.exit(main())
