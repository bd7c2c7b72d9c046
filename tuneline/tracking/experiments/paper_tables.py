"""The paper's tables from measured cells, next to the numbers of Zheng et al. 2024 (arXiv:2403.13372).

Memory is in GB of 10^9 bytes, perplexity is exp of the mean loss over scored tokens, ROUGE is in percentage points.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuneline.config.experiments import paper_tables as tables
from tuneline.config.experiments.paper_tables import BASE_ROW
from tuneline.tracking.experiments.paper_cell import CellMeasurement, CellResult, CellScore

GB = 1e9
EMPTY_CELL = "-"
TASK_TITLES = {"cnn_dm": "CNN/DM", "xsum": "XSum", "adgen": "AdGen", "pubmed": "PubMed"}
REFERENCE_MODELS = {"efficiency": "Gemma-2B", "downstream": "Llama2-7B"}
"""The model of the paper to compare with if the measured model is not in the paper."""

METHOD_ORDER = {
    "efficiency": ("full", "freeze", "galore", "lora", "qlora"),
    "downstream": ("full", "galore", "lora", "qlora"),
}


@dataclass(frozen=True)
class Table:
    """A table of text cells."""

    title: str
    head: list[str]
    rows: list[list[str]]


def summary_line(result: CellResult) -> str:
    """Return the result of a cell in one line."""
    name = f"{TASK_TITLES[result.task]}, {result.method}"
    if result.measured is None:
        return f"{name}: {result.status}{': ' if result.reason else ''}{result.reason}"
    cached = "from the cache" if result.measured.steps.get("train") == "cached" else "trained"
    if result.table == "downstream":
        return f"{name}: {cached}; ROUGE {_points(result.measured.scores['rouge_mean'])}"
    figures = result.measured.training
    return (
        f"{name}: {cached}; {figures['train_memory_bytes'] / GB:.2f} GB, {figures['tokens_per_second']:.1f} tokens/s, "
        f"perplexity {_number(result.measured.totals['model'].get('perplexity'))}"
    )


def reference_model(results: Iterable[CellResult], table: str) -> str:
    """Return the model of the paper to compare with: the same model if the paper has it."""
    repo = next((result.recipe["model"].get("repo_id") for result in results if result.table == table), None)
    name = tables.numbers()["repositories"].get(repo)
    return name if name in tables.numbers()[table] else REFERENCE_MODELS[table]


def all_tables(results: list[CellResult]) -> list[Table]:
    """Return the requested tables, with one downstream table per scorer."""
    measured_tables = []
    if any(result.table == "efficiency" for result in results):
        measured_tables.append(_efficiency(results))
    if any(result.table == "downstream" for result in results):
        measured_tables.append(_downstream(results, "rouge_mean", "Downstream: mean of ROUGE-1, 2 and L"))
        if any(result.measured and "llamafactory_mean" in result.measured.scores for result in results):
            measured_tables.append(
                _downstream(results, "llamafactory_mean", "Downstream, with LlamaFactory's own scorer")
            )
    return measured_tables


def _select(results: Iterable[CellResult], **values: str) -> list[CellResult]:
    return [result for result in results if all(getattr(result, key) == value for key, value in values.items())]


def _efficiency(results: list[CellResult]) -> Table:
    name = reference_model(results, "efficiency")
    paper = tables.numbers()["efficiency"][name]
    cells = {result.method: result for result in _select(results, table="efficiency")}
    measured = [result.measured for result in cells.values() if result.measured]
    full = cells["full"].measured if "full" in cells else None
    head = ["method", "trained parameters", "memory", "of full", "bytes per parameter", "tokens/s", "of full"]
    head += [
        "tokens/CPU-s",
        "perplexity",
        *(f"{name}: {column}" for column in ("memory", "of full", "bytes per parameter")),
    ]
    head += [f"{name}: {column}" for column in ("tokens/s", "of full", "perplexity")]
    before = measured[0].totals["base"].get("perplexity") if measured else None
    rows = [["base (untrained)", *[EMPTY_CELL] * 7, _number(before), *_published_cells(paper, BASE_ROW)]]
    for method in METHOD_ORDER["efficiency"]:
        if method in cells:
            measured_cells = (
                _training_cells(cells[method].measured, full) if cells[method].measured else [cells[method].status] * 8
            )
            rows.append([method, *measured_cells, *_published_cells(paper, method)])
    return Table(f"Training efficiency: {base_model_name(results, 'efficiency')} and the paper's {name}", head, rows)


def _training_cells(cell: CellMeasurement | None, full: CellMeasurement | None) -> list[str]:
    assert cell
    training, full_training = cell.training, full.training if full else {}
    memory, speed = training["train_memory_bytes"], training["tokens_per_second"]
    num_tokens = speed * training["train_seconds"]  # in this process; a resumed training processed more before
    by_processor = num_tokens / training["train_cpu_seconds"] if training["train_cpu_seconds"] else None
    return [
        _count(training["trainable_parameters"]),
        f"{memory / GB:.2f} GB",
        _ratio(memory, full_training.get("train_memory_bytes")),
        f"{memory / cell.parameters:.1f}",
        f"{speed:.1f}",
        _ratio(speed, full_training.get("tokens_per_second")),
        _number(by_processor, 1),
        _number(cell.totals["model"].get("perplexity")),
    ]


def _published_cells(paper: Mapping[str, Any], method: str) -> list[str]:
    """Return the paper's figures in the order of the measured ones."""
    _, memory, speed, perplexity = paper[method]
    _, full_memory, full_speed, _ = paper["full"]
    per_parameter = memory / paper["parameters"] if memory else None
    shares = _ratio(memory, full_memory), _ratio(speed, full_speed)
    return [
        f"{memory:.2f} GB" if memory else EMPTY_CELL,
        shares[0],
        _number(per_parameter, 1),
        _number(speed, 0),
        shares[1],
        _number(perplexity),
    ]


def _downstream(results: list[CellResult], metric: str, title: str) -> Table:
    name = reference_model(results, "downstream")
    paper = tables.numbers()["downstream"][name]
    cells = {(result.task, result.method): result for result in _select(results, table="downstream")}
    tasks = list(dict.fromkeys(task for task, _ in cells))
    head = ["method", *(text for task in tasks for text in (TASK_TITLES[task], f"{name}: {TASK_TITLES[task]}"))]
    rows = []
    for index, method in enumerate((BASE_ROW, *METHOD_ORDER["downstream"])):
        if method != BASE_ROW and not any((task, method) in cells for task in tasks):
            continue
        row = ["base (untrained)" if method == BASE_ROW else method]
        for task in tasks:
            published = paper[task]
            gain = f" ({published[index] - published[0]:+.2f})" if index and published[index] else ""
            row += [_score(cells, task, method, metric), f"{_number(published[index])}{gain}"]
        rows.append(row)
    return Table(f"{title}: {base_model_name(results, 'downstream')} and the paper's {name}", head, rows)


def _score(cells: Mapping[tuple[str, str], CellResult], task: str, method: str, metric: str) -> str:
    if method == BASE_ROW:
        scores = [
            result.measured.scores[metric]
            for (other_task, _), result in cells.items()
            if other_task == task and result.measured
        ]
        return _interval(scores[0]["base"]) if scores else EMPTY_CELL
    cell = cells.get((task, method))
    if cell is None:
        return EMPTY_CELL
    return _points(cell.measured.scores[metric]) if cell.measured else cell.status


def _points(parts: Mapping[str, CellScore]) -> str:
    return f"{_interval(parts['model'])} ({100 * parts['gain'].mean:+.2f})"


def _interval(scored: CellScore) -> str:
    return f"{100 * scored.mean:.2f} [{100 * scored.low:.1f}, {100 * scored.high:.1f}]"


def _number(value: float | None, digits: int = 2) -> str:
    return EMPTY_CELL if value is None else f"{value:,.{digits}f}"


def _ratio(value: float | None, full: float | None) -> str:
    return f"{value / full:.2f}" if value and full else EMPTY_CELL


def _count(value: float) -> str:
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.2f} {unit}"
    return f"{value:.0f}"


def base_model_name(results: Iterable[CellResult], table: str) -> str:
    """Return the name of the base model of a table."""
    model = next(result.recipe["model"] for result in results if result.table == table)
    return str(model.get("repo_id") or model.get("name") or Path(model.get("path", "a model")).name)


def paper_own_tables() -> list[Table]:
    """Return the complete two tables of the paper."""
    numbers = tables.numbers()
    rows = [
        [name, method, *(_number(value) for value in paper[method])]
        for name, paper in numbers["efficiency"].items()
        for method in (BASE_ROW, *METHOD_ORDER["efficiency"])
    ]
    head = ["model", "method", "trained parameters (B)", "memory (GB)", "tokens/s", "perplexity"]
    training_table = Table("Table 4 of the paper", head, rows)
    methods = (BASE_ROW, *METHOD_ORDER["downstream"])
    rows = [
        [name, *(_number(value) for task in paper for value in paper[task])]
        for name, paper in numbers["downstream"].items()
    ]
    head = ["model", *(f"{TASK_TITLES[task]}: {method}" for task in ("cnn_dm", "xsum", "adgen") for method in methods)]
    return [training_table, Table("Table 5 of the paper", head, rows)]
