"""Job: answers to questions of real exams by one engine: ours, lm-evaluation-harness, or the loop of LlamaFactory.

All engines get the same prompts and compare the same four tokens (` A` to ` D`), so that answers can be compared.
The evaluator of LlamaFactory needs loading scripts that `datasets` no longer supports, and samples new shots for each
question; `llamafactory_loop` reproduces its loop (eval/evaluator.py) with our fixed shots: batches of four in input
order, right-padded, logits of every position over the whole vocabulary.
"""

import csv
import json
import time
from pathlib import Path
from typing import Any

from benchmarks.peers import process

Arguments = dict[str, Any]
LETTERS = "ABCD"


def ours(model: Any, tokenizer: Any, arguments: Arguments) -> tuple[float, list[str]]:
    """Answer as the step `evaluate` does."""
    from tuneline.evaluation.tasks import letter_logprobs

    start = time.process_time()
    answers = []
    for subject in arguments["subjects"]:
        table = letter_logprobs.letter_logprobs(model, tokenizer, subject["prompts"])
        answers += [LETTERS[row.index(max(row))] for row in table.tolist()]
    return time.process_time() - start, answers


def lm_eval(model: Any, tokenizer: Any, arguments: Arguments) -> tuple[float, list[str]]:
    """Answer with `simple_evaluate` and tasks defined like its MMLU, CMMLU and C-Eval, on local files."""
    import lm_eval as harness
    from lm_eval.models.huggingface import HFLM

    start = time.process_time()
    harness_model = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=arguments["batch_size"], device="cpu")
    tasks = [_task(subject, number, Path(arguments["scratch"])) for number, subject in enumerate(arguments["subjects"])]
    results = harness.simple_evaluate(model=harness_model, tasks=tasks, log_samples=True, bootstrap_iters=0)
    seconds = time.process_time() - start
    answers: list[str] = []
    for task in tasks:
        samples = sorted(results["samples"][task["task"]], key=lambda sample: sample["doc_id"])
        rows = [[float(answer[0]) for answer in sample["filtered_resps"]] for sample in samples]
        answers += [LETTERS[row.index(max(row))] for row in rows]
    return seconds, answers


def _task(subject: Arguments, number: int, scratch: Path) -> Arguments:
    files = {split: str(scratch / f"{number}-{split}.csv") for split in ("dev", "test")}
    for split, path in files.items():
        with Path(path).open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([["question", *LETTERS, "answer"], *subject[split]])
    choices = "\n".join(f"{letter}. {{{{{letter}}}}}" for letter in LETTERS)
    return {
        "task": f"exam_{number}",
        "dataset_path": "csv",
        "dataset_kwargs": {"data_files": files, "keep_default_na": False},
        "test_split": "test",
        "fewshot_split": "dev",
        "fewshot_config": {"sampler": "first_n"},
        "num_fewshot": len(subject["dev"]),
        "output_type": "multiple_choice",
        "description": subject["head"] + "\n\n",
        "doc_to_text": "{{question.strip()}}\n" + choices + "\n" + subject["answer"],
        "doc_to_choice": list(LETTERS),
        "doc_to_target": "{{['A', 'B', 'C', 'D'].index(answer)}}",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": 1.0},
    }


def llamafactory_loop(model: Any, tokenizer: Any, arguments: Arguments) -> tuple[float, list[str]]:
    """Answer as LlamaFactory 0.9.5 does: `Evaluator.eval` and `batch_inference`."""
    import torch

    start = time.process_time()
    letters = [tokenizer.encode(f" {letter}", add_special_tokens=False)[-1] for letter in LETTERS]
    answers: list[str] = []
    with torch.inference_mode():
        for subject in arguments["subjects"]:
            inputs = [tokenizer(prompt) for prompt in subject["prompts"]]
            for i in range(0, len(inputs), arguments["batch_size"]):
                batch = inputs[i : i + arguments["batch_size"]]
                padded = tokenizer.pad(batch, padding_side="right", return_attention_mask=True, return_tensors="pt")
                logits = model(**padded).logits
                lengths = torch.sum(padded["attention_mask"], dim=-1)
                last = torch.stack([logits[j, lengths[j] - 1] for j in range(len(lengths))], dim=0)
                best = torch.nn.functional.softmax(last[:, letters], dim=-1).detach()
                answers += [LETTERS[int(offset)] for offset in torch.argmax(best, dim=-1)]
    return time.process_time() - start, answers


ENGINES = {"ours": ours, "lm_eval": lm_eval, "llamafactory_loop": llamafactory_loop}


def work(arguments: process.Result) -> process.Result:
    """Load the model, and run one engine."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(arguments["model"], dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(arguments["model"])
    questions = json.loads(Path(arguments["questions"]).read_text(encoding="utf-8"))
    seconds, answers = ENGINES[arguments["engine"]](model, tokenizer, {**arguments, "subjects": questions})
    return {"cpu_seconds": seconds, "answers": answers}


if __name__ == "__main__":
    process.run_as_job(work)
