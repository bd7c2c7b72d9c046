"""Run a multiple-choice benchmark: the most likely letter is the answer."""

import time
from collections.abc import Callable, Iterator
from itertools import groupby

from transformers import PreTrainedTokenizerBase

from tuneline import progress
from tuneline.config.sections import exams
from tuneline.config.sections.evaluate import ExamProtocol
from tuneline.data.benchmarks import multiple_choice
from tuneline.data.benchmarks.multiple_choice import Exam, Question
from tuneline.evaluation.model_under_test import EvaluatedModel
from tuneline.evaluation.score_store import Item, Score, score_answer, score_with_cache
from tuneline.evaluation.tasks import letter_logprobs
from tuneline.identity import Manifest, digest


def run_task(
    candidate: EvaluatedModel,
    tokenizer_manifest: Manifest,
    tokenizer: PreTrainedTokenizerBase,
    benchmarks: Manifest,
    config: ExamProtocol,
) -> list[Score]:
    """Return the accuracy (0 or 1) of a model on each question, by subject."""
    exam = multiple_choice.read_exam(benchmarks.item(config.name))
    shots = {subject: exam.shots.get(subject, [])[: config.num_shots] for subject in exam.test}
    shot_ids = sorted((subject, [shot.id() for shot in examples]) for subject, examples in shots.items())
    protocol = digest([config.protocol, tokenizer_manifest.content_hash(), shot_ids, candidate.setting])
    return score_with_cache(
        candidate.content_hash, protocol, items(exam, config), answer_questions(candidate, tokenizer)
    )


def items(exam: Exam, config: ExamProtocol) -> list[Item]:
    """Return one item per question, subject by subject."""
    return [
        Item(
            config.name,
            question.id(),
            letter_logprobs.prompt(question, exam.shots.get(subject, [])[: config.num_shots], config.benchmark),
            question.answer,
            "/".join(filter(None, [exams.subject_category(config.benchmark, subject), subject])),
        )
        for subject, questions in sorted(exam.test.items())
        for question in _without_duplicates(questions)[: config.max_questions]
    ]


def _without_duplicates(questions: list[Question]) -> list[Question]:
    """Drop duplicates: MMLU contains some questions twice."""
    return list({question.id(): question for question in questions}.values())


def answer_questions(
    candidate: EvaluatedModel, tokenizer: PreTrainedTokenizerBase
) -> Callable[[list[Item]], Iterator[Score]]:
    """Return a function that answers items, which must be grouped by subject."""

    def answer(items: list[Item]) -> Iterator[Score]:
        done = 0
        with progress.bar(f"exam {items[0].benchmark} of {candidate.name}", len(items)) as advance:
            for _, group in groupby(items, key=lambda item: item.group):
                members = list(group)
                start = time.perf_counter()
                table = letter_logprobs.letter_logprobs(candidate.model, tokenizer, [item.prompt for item in members])
                seconds = (time.perf_counter() - start) / len(members)
                for item, row in zip(members, table.tolist(), strict=True):
                    letter = multiple_choice.LETTERS[row.index(max(row))]
                    yield score_answer(item, letter, {"accuracy": float(letter == item.reference)}, seconds=seconds)
                done += len(members)
                advance(done)

    return answer
