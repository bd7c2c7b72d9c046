"""Pipelines that check their configuration as a whole before they run.

ZenML drops unknown keys of a run configuration without a word and reports bad parameters as a long traceback. Here
`with_options`, which `zenml pipeline run --config` calls, answers with one line a mistake and exit code 2; an error of
ours inside a step ends the same way.
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
    """A mistake of the user's: the command line shows the message and exits with 2; in Python, an ordinary error."""

    exit_code = 2  # type: ignore[misc]  # click's is of the class, ours of the error

    def show(self, file: Any = None) -> None:
        """Write the message as it is, so that its first word is the place of the mistake."""
        click.echo(self.format_message(), err=True, file=file)


class StrictPipeline(Pipeline):
    """A pipeline whose configuration file and inputs are checked first."""

    def with_options(self, *args: Any, config_path: str | None = None, **kwargs: Any) -> Pipeline:
        """Check the file, then configure the pipeline with its paths made absolute.

        Raises:
            Refusal: The file is wrong, or names something that is not there.
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
            KeyboardInterrupt: A signal came before, and a library swallowed it.
            Refusal: MLflow is out of reach, its registry would not take a model, or a step refused its input.
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
            refusal = RunError(str(error))
            refusal.exit_code = error.exit_code  # type: ignore[misc]
            raise refusal from error

    def log_pipeline_snapshot_metadata(self, snapshot: Any, stack: Any) -> None:  # type: ignore[override]
        """Note the run, which ZenML begins next, as one of this process."""
        super().log_pipeline_snapshot_metadata(snapshot, stack)
        if not snapshot.schedule:
            abandoned_runs.record_run(stack, str(snapshot.id))


def _check_stage(name: str, checked: run_config.RunConfig) -> None:
    """Refuse the recipe of another stage.

    Raises:
        RecipeError: This pipeline does not run it.
    """
    able = PIPELINES_BY_STAGE[checked.recipe.stage]
    if name not in able:
        raise RecipeError(
            f"{checked.path}: stage: {checked.recipe.stage} is not run by {name}. Run {' or '.join(able)}, or set the "
            "stage that you mean."
        )


def strict_pipeline(stage: str) -> Callable[[Callable[..., None]], StrictPipeline]:
    """Make a function a strict pipeline of the same name that stops at the first failed step.

    Args:
        stage: What the names of trained artifacts begin with, like `sft_model`: names are global in a ZenML project.
            Data carry no stage in their names, so that stages share what was cached.
    """

    def make(function: Callable[..., None]) -> StrictPipeline:
        made = StrictPipeline(
            name=function.__name__,
            entrypoint=function,
            execution_mode=ExecutionMode.FAIL_FAST,
            substitutions={"stage": stage},
        )
        made.__doc__ = function.__doc__
        return made

    return make
