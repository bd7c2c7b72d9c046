"""Ask a task of lm-evaluation-harness (Gao et al. 2024): its prompts, its filters and its scores, on our loaded model.

The harness builds all requests as it always does, so that solved items are drawn as it draws them; only those without
an answer in the store are put to the model, some at a time, so that an interrupted evaluation goes on.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from typing import Any, SupportsFloat

from transformers import PreTrainedTokenizerBase

from tuneline import progress
from tuneline.config.sections import lm_eval as config_of
from tuneline.config.sections.lm_eval import LmEvalConfig
from tuneline.data import file_check
from tuneline.data.benchmarks import lm_eval as data
from tuneline.errors import RecipeError, did_you_mean
from tuneline.evaluation import setting
from tuneline.evaluation.model_under_test import EvaluatedModel
from tuneline.evaluation.score_store import Item, Score, score_answer, score_with_cache
from tuneline.identity import Manifest, digest

VERSION = 1
"""Of how the harness is called; a change asks models again."""

BATCHES_AT_ONCE = 8
"""Batches between two writes of answers; more would let the harness sort requests better by length."""

Requests = dict[str, list[Any]]
"""Item -> its requests (`lm_eval.api.instance.Instance`)."""


def describe(config: LmEvalConfig) -> str:
    """Say how a task is asked, for the report."""
    shots = "the task's shots" if config.num_fewshot is None else f"{config.num_fewshot} shots"
    chat = ", in the chat template" if config.apply_chat_template else ""
    return f"lm_eval {version('lm_eval')}, task {config.task.rpartition('/')[2]}, {shots}{chat}"


def run_task(
    candidate: EvaluatedModel,
    tokenizer_manifest: Manifest,
    tokenizer: PreTrainedTokenizerBase,
    found: Manifest,
    config: LmEvalConfig,
) -> list[Score]:
    """Return the scores of a model on each document of each task behind a recipe's entry.

    Raises:
        SourceError: The task changed since it was resolved.
        RecipeError: A metric is no number for an item.
    """
    located = found.item(config.name)
    file_check.check_unchanged(located)
    tasks = data.load_resolved_tasks(config, located)
    scores = []
    for task in tasks:
        chat = config.apply_chat_template
        asked = [VERSION, data.task_identity(task), config.fewshot_random_seed, chat]
        how = candidate.setting | setting.versions(setting.METRIC_PACKAGES)
        protocol = digest(["lm_eval", *asked, tokenizer_manifest.content_hash(), how])
        documents, requests = _requests(task, tokenizer, config)
        group = task.task_name if len(tasks) > 1 else ""
        items = [_item(task, config.name, group, doc, requests[doc.id]) for doc in documents]
        answer = _answer_documents(candidate, tokenizer, task, config, {doc.id: doc for doc in documents}, requests)
        known = score_with_cache(candidate.content_hash, protocol, items, answer)
        scores += [_select_metrics(each, config, task) for each in known]
    return scores


def _requests(
    task: Any, tokenizer: PreTrainedTokenizerBase, config: LmEvalConfig
) -> tuple[list[data.Document], Requests]:
    """Build what a task asks; solved items are drawn in turn, so all that stand before an item are built, too."""
    documents = list(data.iter_documents(task))[: config.limit]
    task.build_all_requests(
        limit=config.limit,
        apply_chat_template=config.apply_chat_template,
        fewshot_as_multiturn=config.apply_chat_template,
        chat_template=partial(_chat, tokenizer) if config.apply_chat_template else None,
        tokenizer_name="",
    )
    requests: Requests = defaultdict(list)
    for request in task.instances:
        requests[documents[request.doc_id].id].append(request)
    return documents, {item: sorted(group, key=lambda each: each.idx) for item, group in requests.items()}


def _chat(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], add_generation_prompt: bool = True
) -> str:
    """Render as the harness does: open for an answer, or at the end of what begins one."""
    rest = {"add_generation_prompt": add_generation_prompt, "continue_final_message": not add_generation_prompt}
    return str(tokenizer.apply_chat_template(messages, tokenize=False, **rest))


def _item(task: Any, benchmark: str, group: str, doc: data.Document, requests: list[Any]) -> Item:
    wanted = task.doc_to_target(doc.content)
    choices = _choices(task, requests)
    if isinstance(wanted, int) and choices:
        wanted = choices[wanted] if 0 <= wanted < len(choices) else wanted
    prompts = list(dict.fromkeys(str(request.args[0]) for request in requests))
    return Item(benchmark, doc.id, "\n---\n".join(prompts), str(wanted), group)


def _choices(task: Any, requests: list[Any]) -> list[str]:
    """Return what stands to choose: the ends of the requests, or their beginnings where those differ."""
    if task.OUTPUT_TYPE != "multiple_choice":
        return []
    asked = [request for request in requests if request.args[0]] or requests  # not what mutual information adds
    ends = [str(request.args[1]).strip() for request in asked]
    return ends if len(set(ends)) > 1 else [str(request.args[0]) for request in asked]


def _answer_documents(
    candidate: EvaluatedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: Any,
    config: LmEvalConfig,
    documents: dict[str, data.Document],
    requests: Requests,
) -> Callable[[list[Item]], Iterator[Score]]:
    """Return what answers items, some batches at a time."""

    def answer(items: list[Item]) -> Iterator[Score]:
        from lm_eval.models.huggingface import HFLM

        model = HFLM(pretrained=candidate.model, tokenizer=tokenizer, batch_size=config.batch_size, backend="causal")
        step = max(1, config.batch_size * BATCHES_AT_ONCE // max(len(requests[items[0].id]), 1))
        with progress.bar(f"{task.task_name} of {candidate.name}", len(items)) as advance:
            for start in range(0, len(items), step):
                members = items[start : start + step]
                since = time.perf_counter()
                asked = [request for item in members for request in requests[item.id]]
                _run_requests(model, asked)
                task._instances = asked  # filters look at the task's own list
                task.apply_filters()
                seconds = (time.perf_counter() - since) / len(members)
                for item in members:
                    metrics = _metrics(task, documents[item.id].content, requests[item.id])
                    yield score_answer(item, _output(task, requests[item.id]), metrics, seconds=seconds)
                advance(start + len(members))

    return answer


def _run_requests(model: Any, requests: list[Any]) -> None:
    """Put requests to a model, each kind by its own method, as often as the task repeats them."""
    import torch

    torch.manual_seed(0)  # of tasks that sample
    for kind in sorted({request.request_type for request in requests}):
        copies = [each for each in requests if each.request_type == kind for _ in range(each.repeats)]
        for request, answer in zip(copies, getattr(model, kind)(copies, disable_tqdm=True), strict=True):
            request.resps.append(answer)


def _metrics(task: Any, doc: Any, requests: list[Any]) -> dict[str, float]:
    """Return all that the task says of one item in numbers, as `metric`, or `metric,filter` where it has several."""
    filters = list(requests[0].filtered_resps)
    found = {}
    for each in filters:
        values = task.process_results(doc, [request.filtered_resps[each] for request in requests])
        for name, value in values.items():
            if isinstance(value, SupportsFloat) and not isinstance(value, str):
                found[f"{name},{each}" if len(filters) > 1 else name] = float(value)
    return found


def _select_metrics(found: Score, config: LmEvalConfig, task: Any) -> Score:
    """Keep the metrics that the recipe asks for, under their names in tables."""
    only = {metric.partition(",")[0]: value for metric, value in found.metrics.items()}
    values = found.metrics if any("," in metric for metric in found.metrics) else only
    picked = {}
    for written in config.metrics:
        name = written if written in values else written.partition(",")[0]
        if name not in values:
            raise RecipeError(
                f"exams.{config.name}.metrics: task {task.task_name} gave no number {written!r} for an item."
                f"{did_you_mean(written, values)} It gave {', '.join(sorted(values)) or 'none'}. Correct the name."
            )
        picked[config_of.column_name(written)] = values[name]
    return replace(found, metrics=picked)


def _output(task: Any, requests: list[Any]) -> str:
    """Return what a model said: the likeliest choice, the text, or the log-likelihood of the one continuation."""
    if choices := _choices(task, requests):
        found = [float(request.resps[0][0]) for request in requests[: len(choices)]]
        return choices[found.index(max(found))]
    said = requests[0].resps[0]
    return said if isinstance(said, str) else f"log-likelihood {float(said[0]):.4f}"
