"""Inserts rows into MLflow's database, as creating thousands through its client takes minutes."""

import sqlite3
from pathlib import Path


def insert_versions(database: Path, name: str, count: int) -> None:
    """Add versions 1 to `count` of a registered model with different content hashes: `content 1` and so on."""
    numbers = range(1, count + 1)
    versions = [(name, number, number, number, "None", f"file:///gone/{number}", "READY") for number in numbers]
    tags = [
        (key, value, name, n)
        for n in numbers
        for key, value in (("tuneline.content_hash", f"content {n}"), ("zenml.run", f"run-{n}"))
    ]
    with sqlite3.connect(database) as rows:
        rows.executemany(
            "insert into model_versions"
            " (name, version, creation_time, last_updated_time, current_stage, source, status)"
            " values (?, ?, ?, ?, ?, ?, ?)",
            versions,
        )
        rows.executemany("insert into model_version_tags (key, value, name, version) values (?, ?, ?, ?)", tags)


def insert_runs(database: Path, like: str, count: int) -> None:
    """Add newer pipeline runs to the experiment of a run: `run 0` and so on."""
    ids = [f"{i:032x}" for i in range(count)]
    with sqlite3.connect(database) as rows:
        (experiment, start) = rows.execute(
            "select experiment_id, start_time from runs where run_uuid = ?", (like,)
        ).fetchone()
        rows.executemany(
            "insert into runs (run_uuid, name, status, start_time, lifecycle_stage, experiment_id, user_id)"
            " values (?, ?, 'FINISHED', ?, 'active', ?, '')",
            [(run_id, f"run {i}", start + i + 1, experiment) for i, run_id in enumerate(ids)],
        )
        tags = [
            (key, value, run_id)
            for i, run_id in enumerate(ids)
            for key, value in (("tuneline.kind", "pipeline"), ("mlflow.runName", f"run {i}"))
        ]
        rows.executemany("insert into tags (key, value, run_uuid) values (?, ?, ?)", tags)
