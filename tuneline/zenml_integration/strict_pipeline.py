"""Pipelines that validate their whole configuration before they run.

ZenML silently ignores unknown keys of a run configuration and reports wrong parameters as a long traceback. Here
`with_options`, which `zenml pipeline run --config` calls, reports one line per error with exit code 2; an error of
Tuneline inside a step ends in the same way.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import yaml
from zenml.enums import ExecutionMode
from zenml.exceptions import EntityExistsError
from zenml.models import PipelineRunResponse
from zenml.pipelines.pipeline_definition import Pipeline

from tuneline import signals
from tuneline.config import existence, load, run_config
from tuneline.config.stages import PIPELINES_BY_STAGE
from tuneline.errors import RecipeError, TunelineError
from tuneline.storage_errors import translated
from tuneline.zenml_integration import abandoned_runs, artifact_checks, log_filter, schedules, tracker


class RunError(click.ClickException, TunelineError):
    """A run that cannot start or has failed: the command line prints the message and exits with 2."""

    exit_code = 2  # type: ignore[misc]  # click defines it on the class

    def show(self, file: Any = None) -> None:
        """Print the message without a prefix, so that it begins with the location of the error."""
        click.echo(self.format_message(), err=True, file=file)


class StrictPipeline(Pipeline):
    """A pipeline that checks its configuration file and inputs first."""

    def with_options(self, *args: Any, config_path: str | None = None, **kwargs: Any) -> Pipeline:
        """Check the file, then configure the pipeline with its paths made absolute.

        Raises:
            RunError: The file has errors, or names a file that does not exist.
        """
        if config_path is None:
            return super().with_options(*args, **kwargs)
        try:
            checked = load.load(Path(config_path))
            _check_stage(self.name, checked)
            existence.check(checked.recipe)
            if checked.content.get("schedule"):
                schedules.check_schedule(checked)
        except TunelineError as error:
            raise RunError(str(error)) from error
        scratch = tempfile.TemporaryDirectory(prefix="tuneline-")
        resolved = Path(scratch.name) / "run.yaml"
        resolved.write_text(yaml.safe_dump(checked.content, sort_keys=False))
        configured = super().with_options(*args, **{**kwargs, "config_path": str(resolved)})
        configured._scratch = scratch  # type: ignore[attr-defined]  # the file lives as long as the pipeline
        return configured

    def __call__(self, *args: Any, **kwargs: Any) -> PipelineRunResponse | None:
        """Run on the active stack.

        Raises:
            KeyboardInterrupt: A signal was received before, and a library suppressed it.
            RunError: MLflow cannot be reached, its registry accepts no model, or a step failed.
        """
        try:
            with signals.raise_on_signal() as stop:
                signals.raise_if_received()
                if self.name in PIPELINES_BY_STAGE["export"]:
                    tracker.connect()
                else:
                    tracker.connect_to_registry(self.name)
                abandoned_runs.close()
                with (
                    abandoned_runs.mark_failed_on_error(),
                    translated(),
                    artifact_checks.verify_cached_steps(),
                    log_filter.without_tracebacks(),
                ):
                    return super().__call__(*args, **kwargs)
        except KeyboardInterrupt as error:
            if not click.get_current_context(silent=True):
                raise
            click.echo(stop.line if stop.name else "Stopped by Ctrl-C.", err=True)  # zenml pipeline run
            raise click.exceptions.Exit(2 if isinstance(error, signals.Terminated) else 130) from error
        except RunError:
            raise
        except EntityExistsError as error:
            raise RunError(
                f"schedule.name: {' '.join(str(error).split())} Choose another name, delete that one (`zenml pipeline "
                "schedule delete NAME`), or replace one of this stack with `tuneline schedule FILE`."
            ) from error
        except TunelineError as error:
            run_error = RunError(str(error))
            run_error.exit_code = error.exit_code  # type: ignore[misc]
            raise run_error from error

    def log_pipeline_snapshot_metadata(self, snapshot: Any, stack: Any) -> None:  # type: ignore[override]
        """Record the run that ZenML starts next as a run of this process."""
        super().log_pipeline_snapshot_metadata(snapshot, stack)
        if not snapshot.schedule:
            abandoned_runs.record_run(stack, str(snapshot.id))


def _check_stage(name: str, checked: run_config.RunConfig) -> None:
    """Check that this pipeline runs the stage of a recipe.

    Raises:
        RecipeError: It does not.
    """
    pipelines = PIPELINES_BY_STAGE[checked.recipe.stage]
    if name not in pipelines:
        raise RecipeError(
            f"{checked.path}: stage: {checked.recipe.stage} is not run by {name}. Run {' or '.join(pipelines)}, or set "
            "another stage."
        )


def strict_pipeline(stage: str) -> Callable[[Callable[..., None]], StrictPipeline]:
    """Decorate a function as a strict pipeline of the same name, which stops at the first failed step.

    Args:
        stage: Prefix of the names of trained artifacts, such as `sft_model`: names are global in a ZenML project.
            Data artifacts have no prefix, so that stages share cached data steps.
    """

    def decorate(function: Callable[..., None]) -> StrictPipeline:
        pipeline = StrictPipeline(
            name=function.__name__,
            entrypoint=function,
            execution_mode=ExecutionMode.FAIL_FAST,
            substitutions={"stage": stage},
        )
        pipeline.__doc__ = function.__doc__
        return pipeline

    return decorate
