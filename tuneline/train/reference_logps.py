"""Reference log-probabilities: computed once with the initial model, and stored with the training state.

A resumed training reads the stored values, so they stay bitwise identical and are not computed again.
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
    path = job.state.folder / REFERENCE_FILE
    columns = torch.load(path, weights_only=True) if path.is_file() else None
    if columns is None:
        columns = _compute(job, objective, model, autocast)
        _save(columns, path)
    return {name: _add_columns(splits[name], columns.get(name, {})) for name in splits}


def _compute(
    job: TrainingJob, objective: Objective, model: Any, autocast: torch.dtype | None
) -> dict[str, dict[str, list[Any]]]:
    total = sum(rows.num_rows for rows in job.rows.splits.values())
    was_training, num_done = model.training, 0
    model.eval()
    with progress.bar("reference", total) as advance, torch.no_grad():

        def compute_losses(inputs: Inputs) -> tuple[torch.Tensor, torch.Tensor]:
            nonlocal num_done
            num_done += 1
            advance(min(num_done, total))
            with torch.autocast(model.device.type, autocast, enabled=autocast is not None):
                return token_losses.token_losses(job.family, model, inputs)

        columns = objective.compute_reference_columns(job.rows.splits, compute_losses, model.device)
    model.train(was_training)
    return columns


def _save(columns: dict[str, dict[str, list[Any]]], path: Path) -> None:
    with filesystem.atomic_path(path) as unfinished:
        torch.save(columns, unfinished)


def _add_columns(rows: Dataset, columns: dict[str, list[Any]]) -> Dataset:
    for name, values in columns.items():
        rows = rows.add_column(name, values)
    return rows
