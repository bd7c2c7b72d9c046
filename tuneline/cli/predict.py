"""`tuneline predict`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.table import Table

from tuneline.cli import show
from tuneline.cli.chat import KeyOption, UrlOption
from tuneline.errors import RecipeError

if TYPE_CHECKING:
    from tuneline.serve.predict.job import PredictJob
    from tuneline.serve.predict.predict import PredictResult

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
FileArgument = Annotated[
    str,
    typer.Argument(
        help="Data file, folder or pattern in any format that recipes read, or dataset:NAME, an entry of a dataset "
        "registry."
    ),
]
OutputOption = Annotated[Path, typer.Option("--output", "-o", help="JSONL file for the answers; resumed if it exists.")]
ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        help="A registered model (demo@champion, demo/7), a folder, a catalogue name, or a Hub repository. With "
        "--url: the name of a model on the server.",
    ),
]
BatchSizeOption = Annotated[
    int, typer.Option(min=1, max=65536, help="Prompts per batch, or requests to the server at the same time.")
]
ColumnsOption = Annotated[
    list[str] | None, typer.Option(help="Column names, such as instruction=question,output=answer; repeatable.")
]
BadRowsOption = Annotated[
    Literal["refuse", "drop"], typer.Option(help="Rows that cannot be used: fail, or drop and count them.")
]
MetricsOption = Annotated[
    list[str] | None,
    typer.Option(help="Metric for rows with a reference, as in evaluate.metrics; can be repeated."),
]


def add_commands(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command()(predict)


def predict(
    file: FileArgument,
    output: OutputOption,
    model: ModelOption = None,
    url: UrlOption = None,
    key: KeyOption = None,
    batch_size: BatchSizeOption = 16,
    max_new_tokens: Annotated[int, typer.Option(help="Maximum number of tokens per answer.")] = 512,
    temperature: Annotated[float, typer.Option(help="Sampling temperature; 0 decodes greedily.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Seed of the sampling.")] = 0,
    system: Annotated[str | None, typer.Option(help="System message for rows without one.")] = None,
    format: Annotated[
        str | None, typer.Option(help="Row format, such as alpaca or openai; default: detect it.")
    ] = None,
    columns: ColumnsOption = None,
    datasets: Annotated[Path | None, typer.Option(help="Dataset registry for dataset:NAME.")] = None,
    max_rows: Annotated[int | None, typer.Option(help="Number of first rows to answer.")] = None,
    bad_rows: BadRowsOption = "refuse",
    metric: MetricsOption = None,
    dtype: Annotated[Dtype, typer.Option(help="Data type of the weights.")] = "auto",
    restart: Annotated[bool, typer.Option("--restart", help="Delete the answers in the output file first.")] = False,
) -> None:
    """Answer the rows of a data file; resumes an interrupted run. Scores rows with a reference as evaluate does."""
    if model is None and url is None:
        raise RecipeError("Expected --model or --url, found neither. Example: --model demo@champion")
    show.silence_logs()
    from tuneline.serve.predict import job as jobs
    from tuneline.serve.predict import rows

    changes = {"format": format, "columns": rows.parse_columns(columns or []), "max_rows": max_rows}
    set_changes = {name: value for name, value in changes.items() if value}
    values = {"max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed}
    job = jobs.PredictJob(
        rows.find_source(file, datasets, set_changes),
        output,
        jobs.align_policy(system, bad_rows),
        jobs.generation_settings(values),
        batch_size,
        tuple(metric or jobs.METRICS),
        restart,
    )
    result = _predict_with_server(job, url, model, key) if url else _predict_locally(job, model or "", dtype)
    _show(job, result)


def _predict_locally(job: "PredictJob", model: str, dtype: Dtype) -> "PredictResult":
    from tuneline.cli import serve

    config = serve.read_config(model, {} if dtype == "auto" else {"dtype": dtype})
    with show.status(f"Opening {model}"):
        from tuneline.serve.predict.opening import open_local
        from tuneline.serve.predict.predict import predict_local

        load, identity = open_local(config)
    return predict_local(job, load, identity)


def _predict_with_server(job: "PredictJob", url: str, model: str | None, key: str | None) -> "PredictResult":
    from tuneline.serve.predict.opening import open_server
    from tuneline.serve.predict.predict import predict_remote

    return predict_remote(job, *open_server(url, model or "", key))


def _show(job: "PredictJob", result: "PredictResult") -> None:
    console = show.console()
    resumed = f", {result.num_resumed} of them from an earlier run" if result.num_resumed else ""
    console.print(f"Answers  {result.num_answers}{resumed}: {job.output}", soft_wrap=True)
    if result.dropped:
        reasons = "; ".join(f"{reason}: {count}" for reason, count in result.dropped.items())
        console.print(f"Dropped  {sum(result.dropped.values())} rows ({reasons})", soft_wrap=True)
        for line in result.dropped_first:
            console.print(f"         {line}", soft_wrap=True)
    if result.report is None:
        console.print("Scores   none: no row has a reference")
        return
    num_scored, num_rows = result.report.num_scored, result.report.num_rows
    console.print(f"Scores   {num_scored} of {num_rows} answers have a reference; 95 % intervals", soft_wrap=True)
    console.print(_table(result))
    for name, value in result.report.corpus.items():
        console.print(f"{name}: {value:.4g}")
    console.print(f"File     {job.scores_path}", soft_wrap=True)


def _table(result: "PredictResult") -> Table:
    from tuneline.evaluation.report import format_interval

    report: Any = result.report
    table = Table()
    for name in ("metric", "items", "score"):
        table.add_column(name, justify="left" if name == "metric" else "right")
    for name, interval in report.metrics.items():
        table.add_row(name, str(interval.num_items), format_interval(name, interval))
    return table
