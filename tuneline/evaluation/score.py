"""Score one model on the held-out examples and the exams; each answer is kept, none is asked for twice."""

from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path

from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tuneline import progress
from tuneline.config.evaluate import EvaluateStepConfig, ExamProtocol
from tuneline.data import benchmarks, render
from tuneline.data.tokenizer import load_tokenizer
from tuneline.evaluation import choice, generate, likelihood, rouge
from tuneline.evaluation.items import Item, Score, remembered, score
from tuneline.identity import Manifest, digest
from tuneline.model import value_head
from tuneline.model.checkpoint import Checkpoint
from tuneline.model.load import load_for_answers, load_model
from tuneline.model.source import folder_of
from tuneline.model.value_head import ValueHead

HELD_OUT = "held_out"


class Candidate:
    """A model by its hash; its weights are loaded when a question has no answer in the store."""

    def __init__(
        self, name: str, folder: Path, content_hash: str, load: Callable[[], PreTrainedModel] | None = None
    ) -> None:
        self.name, self.content_hash = name, content_hash
        self._folder = folder
        self._load = load or partial(load_model, folder)

    @cached_property
    def model(self) -> PreTrainedModel:
        """Load the weights, once."""
        return self._load().eval()

    @cached_property
    def head(self) -> ValueHead | None:
        """Load the head of a reward model; other models have none."""
        if not (self._folder / value_head.FILE).is_file():
            return None
        return value_head.load(self._folder).to(self.model.device).eval()


def base(base_model: Manifest, tokenizer: Manifest, config: EvaluateStepConfig) -> Candidate:
    """Return the base model as a candidate: with the adapters it came with, and room for new tokens."""
    load = partial(load_for_answers, base_model, tokenizer, config.load)
    return Candidate("base model", folder_of(base_model), base_model.content_hash(), load)


def trained(model: Checkpoint, config: EvaluateStepConfig) -> Candidate:
    """Return what a training made as a candidate."""
    load = partial(load_model, model.path, allowed=config.load.model_copy(update={"train_from_scratch": False}))
    return Candidate("new model", model.path, model.content_hash(), load)


def score_all(
    candidate: Candidate, tokenizer_manifest: Manifest, held_out: Dataset, exams: Manifest, config: EvaluateStepConfig
) -> list[Score]:
    """Return the scores of a model on every item of the recipe, in a fixed order."""
    tokenizer = load_tokenizer(tokenizer_manifest)
    scores = _held_out(candidate, tokenizer_manifest, tokenizer, held_out, config)
    for exam in config.exams:
        scores += _sit(candidate, tokenizer_manifest, tokenizer, exams, exam)
    return scores


def _held_out(
    candidate: Candidate,
    tokenizer_manifest: Manifest,
    tokenizer: PreTrainedTokenizerBase,
    held_out: Dataset,
    config: EvaluateStepConfig,
) -> list[Score]:
    """Ask for the last answer of held-out chats; judge texts and pairs by their likelihood."""
    if likelihood.is_by_likelihood(held_out):
        window = config.window
        protocol = digest([likelihood.VERSION, tokenizer_manifest.content_hash(), window, "float32"])
        items = likelihood.items(held_out, config.max_items)
        judge = likelihood.Judge(lambda: candidate.model, lambda: candidate.head, tokenizer, window)
        answer = judge.scorer(held_out, title=f"likelihoods of {candidate.name}")
    else:
        protocol = generation_protocol(tokenizer_manifest, config)
        items = held_out_items(held_out, tokenizer, config.max_items)
        answer = _generator(candidate, tokenizer, config)
    return remembered(candidate.content_hash, protocol, items, answer)


def generation_protocol(tokenizer: Manifest, config: EvaluateStepConfig) -> str:
    """Name how answers are made and scored; another way is another protocol."""
    return digest(["greedy", tokenizer.content_hash(), config.max_new_tokens, rouge.VERSION, "float32"])


def held_out_items(held_out: Dataset, tokenizer: PreTrainedTokenizerBase, max_items: int | None) -> list[Item]:
    """Ask for the last answer of each held-out example."""
    rows = sorted(held_out, key=lambda row: row["id"])[:max_items]
    return [Item(HELD_OUT, row["id"], *render.prompt(row["messages"], row["tools"], tokenizer)) for row in rows]


def _generator(
    candidate: Candidate, tokenizer: PreTrainedTokenizerBase, config: EvaluateStepConfig
) -> Callable[[list[Item]], list[Score]]:
    def answer(items: list[Item]) -> list[Score]:
        prompts = [item.prompt for item in items]
        title = f"answers of {candidate.name}"
        outputs = generate.answers(
            candidate.model, tokenizer, prompts, config.max_new_tokens, config.batch_size, title=title
        )
        references = [item.reference for item in items]
        metric = rouge.Rouge(keep_in_memory=True)
        columns = metric.compute(predictions=outputs, references=references, aggregate=False)
        rows = [{kind: columns[kind][i] for kind in rouge.KINDS} for i in range(len(items))]
        return [score(*parts) for parts in zip(items, outputs, rows, strict=True)]

    return answer


def _sit(
    candidate: Candidate,
    tokenizer_manifest: Manifest,
    tokenizer: PreTrainedTokenizerBase,
    exams: Manifest,
    config: ExamProtocol,
) -> list[Score]:
    exam = benchmarks.read_exam(exams.item(config.name))
    shots = {subject: exam.shots.get(subject, [])[: config.num_shots] for subject in exam.test}
    items = [
        Item(config.name, question.id(), choice.prompt(question, shots[subject]), question.answer)
        for subject, questions in sorted(exam.test.items())
        for question in questions
    ]
    asked = sorted((subject, [shot.id() for shot in solved]) for subject, solved in shots.items())
    protocol = digest(["letters", tokenizer_manifest.content_hash(), asked, "float32"])
    return remembered(candidate.content_hash, protocol, items, _examinee(candidate, tokenizer))


def _examinee(candidate: Candidate, tokenizer: PreTrainedTokenizerBase) -> Callable[[list[Item]], list[Score]]:
    """Answer by the likeliest letter, subject by subject, so that the shots in front are computed once."""

    def answer(items: list[Item]) -> list[Score]:
        by_head: dict[str, list[Item]] = {}
        for item in items:
            by_head.setdefault(item.prompt.split("\n", 1)[0], []).append(item)
        scores = []
        with progress.bar(f"exam {items[0].benchmark} of {candidate.name}", len(items)) as advance:
            for members in by_head.values():
                table = choice.letter_logprobs(candidate.model, tokenizer, [item.prompt for item in members])
                for item, row in zip(members, table.tolist(), strict=True):
                    letter = benchmarks.LETTERS[row.index(max(row))]
                    scores.append(score(item, letter, {"accuracy": float(letter == item.reference)}))
                advance(len(scores))
        return scores

    return answer
