"""What the model says of the rows as a training starts, computed once and kept with the training state.

Going on after a kill reads it again, so that it is the same to the bit, and costs its passes once.
"""

import logging
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from tuneline import filesystem, progress
from tuneline.train import token_losses
from tuneline.train.job import TrainingJob
from tuneline.train.objectives import Objective
from tuneline.train.objectives.base import DatasetSplits, Inputs

logger = logging.getLogger(__name__)

REFERENCE_FILE = "reference.pt"


def add_reference_columns(
    job: TrainingJob, objective: Objective, model: Any, autocast: torch.dtype | None
) -> DatasetSplits:
    """Return the rows, with the columns that the objective computes before the first step."""
    splits = job.rows.splits
    if not objective.needs_reference_columns:
        return splits
    kept = job.state.folder / REFERENCE_FILE
    columns = torch.load(kept, weights_only=True) if kept.is_file() else None
    if columns is None:
        columns = _computed(job, objective, model, autocast)
        _keep(columns, kept)
    return {name: _with(splits[name], columns.get(name, {})) for name in splits}


def _computed(
    job: TrainingJob, objective: Objective, model: Any, autocast: torch.dtype | None
) -> dict[str, dict[str, list[Any]]]:
    total = sum(rows.num_rows for rows in job.rows.splits.values())
    was_training, seen = model.training, 0
    model.eval()
    with progress.bar("reference", total) as advance, torch.no_grad():

        def measure(inputs: Inputs) -> tuple[torch.Tensor, torch.Tensor]:
            nonlocal seen
            seen += 1
            advance(min(seen, total))
            with torch.autocast(model.device.type, autocast, enabled=autocast is not None):
                return token_losses.token_losses(job.family, model, inputs)

        columns = objective.prepare(job.rows.splits, measure, model.device)
    model.train(was_training)
    return columns


def _keep(columns: dict[str, dict[str, list[Any]]], path: Path) -> None:
    with filesystem.atomic_path(path) as unfinished:
        torch.save(columns, unfinished)


def _with(rows: Dataset, columns: dict[str, list[Any]]) -> Dataset:
    for name, values in columns.items():
        rows = rows.add_column(name, values)
    return rows
