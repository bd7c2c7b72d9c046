"""Batch inference: read rows, answer them, write the answers in order, and score them."""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from tuneline import filesystem, progress
from tuneline.data.align.prompts import PromptRow, PromptRows
from tuneline.errors import DataError
from tuneline.serve.chat.http_client import HttpClient
from tuneline.serve.chat.interface import ChatError
from tuneline.serve.predict import remote, scores
from tuneline.serve.predict.job import ModelIdentity, PredictJob
from tuneline.serve.predict.local import LocalModelAnswers, Pair
from tuneline.serve.predict.output import Line, OutputFile
from tuneline.serve.predict.rows import read_rows
from tuneline.serve.predict.scores import ScoreReport

MAX_DROPPED_SHOWN = 5


@dataclass(frozen=True)
class PredictResult:
    """What a prediction did."""

    num_answers: int
    """Number of lines in the output file."""

    num_resumed: int
    """Number of answers that were there before."""

    num_tokens: int
    """Number of tokens that this process generated."""

    dropped: dict[str, int]
    """Reason -> number of dropped rows."""

    dropped_first: list[str]
    """Place and error of the first dropped rows."""

    report: ScoreReport | None
    """Scores; None without references."""


@dataclass
class _Dropped:
    """Counts of dropped rows, which `bad_rows: refuse` turns into an error."""

    refuse: bool
    reasons: Counter[str] = field(default_factory=Counter)
    first: list[str] = field(default_factory=list)

    def add(self, row: PromptRow, error: Exception, reason: str) -> None:
        """Count a row.

        Raises:
            DataError: Rows must not be dropped.
        """
        if self.refuse:
            raise DataError(f"{row.place}: {error} Fix the row, or pass --bad-rows drop.", reason) from error
        self.reasons[reason] += 1
        if len(self.first) < MAX_DROPPED_SHOWN:
            self.first.append(f"{row.place}: {error}")


def predict_local(job: PredictJob, load: Callable[[], LocalModelAnswers], identity: ModelIdentity) -> PredictResult:
    """Answer the rows with a model in this process.

    Args:
        job: The prediction.
        load: Loads the model, after rows and output file have been checked.
        identity: The model.

    Raises:
        TunelineError: A row cannot be answered, or the output file cannot be resumed.
    """
    prompts, dropped = _read(job)
    output = OutputFile(job.output, _settings(job, identity))
    with output.locked():
        output.check(restart=job.restart)
        model = load()
        rows = _answerable(prompts.rows, model, job, dropped)
        finished = output.start(rows, restart=job.restart)
        start, num_tokens = _num_finished(rows, finished), 0
        with progress.bar("answers", len(rows)) as advance:
            advance(start)
            for pairs in model.answers(rows, start, job.batch_size, job.generation):
                output.append(pairs)
                num_tokens += sum(prediction.tokens for _, prediction in pairs)
                start += len(pairs)
                advance(start)
        return _result(job, output, identity, dropped, len(finished), num_tokens)


def _answerable(rows: list[PromptRow], model: LocalModelAnswers, job: PredictJob, dropped: _Dropped) -> list[PromptRow]:
    """Return the rows that the model can answer.

    Raises:
        DataError: It cannot answer one, and rows must not be dropped.
    """
    answerable = []
    for row in rows:
        try:
            model.check(row, job.generation.max_new_tokens)
        except DataError as error:
            dropped.add(row, error, error.reason or "refused by the chat template")
        else:
            answerable.append(row)
    return answerable


def predict_remote(job: PredictJob, client: HttpClient, identity: ModelIdentity) -> PredictResult:
    """Answer the rows with a server; closes the client.

    Raises:
        TunelineError: The server does not answer, refuses a row, or the output file cannot be resumed.
    """
    prompts, dropped = _read(job)
    rows = prompts.rows
    output = OutputFile(job.output, _settings(job, identity))
    with output.locked():
        finished = output.start(rows, restart=job.restart)
        num_tokens = asyncio.run(_answer_remote(job, client, output, rows, _num_finished(rows, finished), dropped))
        return _result(job, output, identity, dropped, len(finished), num_tokens)


async def _answer_remote(
    job: PredictJob,
    client: HttpClient,
    output: OutputFile,
    rows: Sequence[PromptRow],
    num_finished: int,
    dropped: _Dropped,
) -> int:
    """Answer the remaining rows; return the number of generated tokens."""
    num_tokens, num_done = 0, num_finished
    try:
        with progress.bar("answers", len(rows)) as advance:
            advance(num_done)
            stream = remote.answers(client, rows[num_finished:], job.batch_size, job.generation)
            async with aclosing(stream) as outcomes:  # type: ignore[type-var]
                async for batch in outcomes:
                    pairs = list(_accepted(batch, dropped, output))
                    output.append(pairs)
                    num_tokens += sum(prediction.tokens for _, prediction in pairs)
                    num_done += len(batch)
                    advance(num_done)
    finally:
        await client.close()
    return num_tokens


def _accepted(batch: list[tuple[PromptRow, remote.Outcome]], dropped: _Dropped, output: OutputFile) -> Iterator[Pair]:
    """Yield the answered rows; the answers before a refused row are written before its error is raised."""
    accepted: list[Pair] = []
    for row, outcome in batch:
        if not isinstance(outcome, ChatError):
            accepted.append((row, outcome))
            continue
        try:
            dropped.add(row, outcome, "refused by the server")
        except DataError:
            output.append(accepted)
            raise
    yield from accepted


def _read(job: PredictJob) -> tuple[PromptRows, _Dropped]:
    scores.check_metrics(job.metrics)
    prompts = read_rows(job.source, job.align, job.output)
    counts = Counter(prompts.counts["dropped"])
    return prompts, _Dropped(job.align.bad_rows == "refuse", counts, list(prompts.counts["dropped_first"]))


def _settings(job: PredictJob, identity: ModelIdentity) -> dict[str, Any]:
    """Return what decides the answers, besides the rows."""
    return {**identity.settings(), **job.generation.model_dump()}


def _num_finished(rows: Sequence[PromptRow], lines: list[Line]) -> int:
    """Return the number of rows up to the last one with an answer."""
    if not lines:
        return 0
    last = lines[-1]["row"]
    return next(number for number, row in enumerate(rows, start=1) if row.place == last)


def _result(
    job: PredictJob,
    output: OutputFile,
    identity: ModelIdentity,
    dropped: _Dropped,
    num_resumed: int,
    num_tokens: int,
) -> PredictResult:
    """Score the answers, and write the scores file."""
    lines = list(output.read())
    report = scores.score(lines, scores.check_metrics(job.metrics))
    if report:
        facts = {"model": identity.name, "settings": output.settings, "dropped": dict(dropped.reasons)}
        filesystem.write_atomic(job.scores_path, report.to_json(facts))
    return PredictResult(len(lines), num_resumed, num_tokens, dict(dropped.reasons), dropped.first, report)
