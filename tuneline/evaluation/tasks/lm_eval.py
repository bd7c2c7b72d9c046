"""Run tasks of lm-evaluation-harness (Gao et al. 2024) with its prompts, filters and metrics on a loaded model.

The harness builds all requests, so few-shot examples are the same as in a run of the harness itself. Only documents
without a cached score are sent to the model, in groups, so an interrupted evaluation continues where it stopped.
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
from tuneline.evaluation import environment
from tuneline.evaluation.model_under_test import EvaluatedModel
from tuneline.evaluation.score_store import Item, Score, score_answer, score_with_cache
from tuneline.identity import Manifest, digest

VERSION = 1
"""Version of how the harness is called; part of the protocol."""

BATCHES_AT_ONCE = 8
"""Batches between two writes to the score cache; more would let the harness sort requests better by length."""

Requests = dict[str, list[Any]]
"""Document id -> its requests (`lm_eval.api.instance.Instance`)."""


def describe(config: LmEvalConfig) -> str:
    """Describe how a task is run, for the report."""
    shots = "the task's shots" if config.num_fewshot is None else f"{config.num_fewshot} shots"
    chat = ", in the chat template" if config.apply_chat_template else ""
    return f"lm_eval {version('lm_eval')}, task {config.task.rpartition('/')[2]}, {shots}{chat}"


def run_task(
    candidate: EvaluatedModel,
    tokenizer_manifest: Manifest,
    tokenizer: PreTrainedTokenizerBase,
    benchmarks: Manifest,
    config: LmEvalConfig,
) -> list[Score]:
    """Return the scores of a model on each document of each task of a recipe entry.

    Raises:
        SourceError: The task changed since it was resolved.
        RecipeError: A metric is not a number for a document.
    """
    located = benchmarks.item(config.name)
    file_check.check_unchanged(located)
    tasks = data.load_resolved_tasks(config, located)
    scores = []
    for task in tasks:
        chat = config.apply_chat_template
        identity = [VERSION, data.task_identity(task), config.fewshot_random_seed, chat]
        setting = candidate.setting | environment.versions(environment.METRIC_PACKAGES)
        protocol = digest(["lm_eval", *identity, tokenizer_manifest.content_hash(), setting])
        documents, requests = _requests(task, tokenizer, config)
        group = task.task_name if len(tasks) > 1 else ""
        items = [_item(task, config.name, group, doc, requests[doc.id]) for doc in documents]
        answer = _answer_documents(candidate, tokenizer, task, config, {doc.id: doc for doc in documents}, requests)
        task_scores = score_with_cache(candidate.content_hash, protocol, items, answer)
        scores += [_select_metrics(each, config, task) for each in task_scores]
    return scores


def _requests(
    task: Any, tokenizer: PreTrainedTokenizerBase, config: LmEvalConfig
) -> tuple[list[data.Document], Requests]:
    """Build the requests of a task. Few-shot examples depend on the documents before, so all are built."""
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
    """Render a chat as the harness does: with a generation prompt, or continuing the final message."""
    options = {"add_generation_prompt": add_generation_prompt, "continue_final_message": not add_generation_prompt}
    return str(tokenizer.apply_chat_template(messages, tokenize=False, **options))


def _item(task: Any, benchmark: str, group: str, doc: data.Document, requests: list[Any]) -> Item:
    target = task.doc_to_target(doc.content)
    choices = _choices(task, requests)
    if isinstance(target, int) and choices:
        target = choices[target] if 0 <= target < len(choices) else target
    prompts = list(dict.fromkeys(str(request.args[0]) for request in requests))
    return Item(benchmark, doc.id, "\n---\n".join(prompts), str(target), group)


def _choices(task: Any, requests: list[Any]) -> list[str]:
    """Return the choices: the continuations of the requests, or their contexts where the continuations are equal."""
    if task.OUTPUT_TYPE != "multiple_choice":
        return []
    scored = [
        request for request in requests if request.args[0]
    ] or requests  # without unconditional requests (acc_mutual_info)
    continuations = [str(request.args[1]).strip() for request in scored]
    return continuations if len(set(continuations)) > 1 else [str(request.args[0]) for request in scored]


def _answer_documents(
    candidate: EvaluatedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: Any,
    config: LmEvalConfig,
    documents: dict[str, data.Document],
    requests: Requests,
) -> Callable[[list[Item]], Iterator[Score]]:
    """Return a function that scores documents, some batches at a time."""

    def answer(items: list[Item]) -> Iterator[Score]:
        from lm_eval.models.huggingface import HFLM

        model = HFLM(pretrained=candidate.model, tokenizer=tokenizer, batch_size=config.batch_size, backend="causal")
        step = max(1, config.batch_size * BATCHES_AT_ONCE // max(len(requests[items[0].id]), 1))
        with progress.bar(f"{task.task_name} of {candidate.name}", len(items)) as advance:
            for start in range(0, len(items), step):
                members = items[start : start + step]
                start_time = time.perf_counter()
                batch = [request for item in members for request in requests[item.id]]
                _run_requests(model, batch)
                task._instances = batch  # filters read the task's own list
                task.apply_filters()
                seconds = (time.perf_counter() - start_time) / len(members)
                for item in members:
                    metrics = _metrics(task, documents[item.id].content, requests[item.id])
                    yield score_answer(item, _output(task, requests[item.id]), metrics, seconds=seconds)
                advance(start + len(members))

    return answer


def _run_requests(model: Any, requests: list[Any]) -> None:
    """Send requests to the model, by the method of their type, as often as the task repeats them."""
    import torch

    torch.manual_seed(0)  # for tasks that sample
    for kind in sorted({request.request_type for request in requests}):
        copies = [each for each in requests if each.request_type == kind for _ in range(each.repeats)]
        for request, answer in zip(copies, getattr(model, kind)(copies, disable_tqdm=True), strict=True):
            request.resps.append(answer)


def _metrics(task: Any, doc: Any, requests: list[Any]) -> dict[str, float]:
    """Return the numeric metrics of a document, named `metric`, or `metric,filter` if the task has several filters."""
    filters = list(requests[0].filtered_resps)
    metrics = {}
    for each in filters:
        values = task.process_results(doc, [request.filtered_resps[each] for request in requests])
        for name, value in values.items():
            if isinstance(value, SupportsFloat) and not isinstance(value, str):
                metrics[f"{name},{each}" if len(filters) > 1 else name] = float(value)
    return metrics


def _select_metrics(full: Score, config: LmEvalConfig, task: Any) -> Score:
    """Keep the metrics that the recipe names, under their column names."""
    only = {metric.partition(",")[0]: value for metric, value in full.metrics.items()}
    values = full.metrics if any("," in metric for metric in full.metrics) else only
    selected = {}
    for metric in config.metrics:
        name = metric if metric in values else metric.partition(",")[0]
        if name not in values:
            raise RecipeError(
                f"exams.{config.name}.metrics: task {task.task_name} reports no number {metric!r} for a document."
                f"{did_you_mean(metric, values)} It reports {', '.join(sorted(values)) or 'none'}. Correct the name."
            )
        selected[config_of.column_name(metric)] = values[name]
    return replace(full, metrics=selected)


def _output(task: Any, requests: list[Any]) -> str:
    """Return the output: the most likely choice, the generated text, or the log-likelihood of a continuation."""
    if choices := _choices(task, requests):
        log_likelihoods = [float(request.resps[0][0]) for request in requests[: len(choices)]]
        return choices[log_likelihoods.index(max(log_likelihoods))]
    response = requests[0].resps[0]
    return response if isinstance(response, str) else f"log-likelihood {float(response[0]):.4f}"
