"""Job: greedy answers to prompts of different lengths, by our evaluator or by padded batches of transformers."""

import json
import time
from pathlib import Path
from typing import Any

from benchmarks.peers import process

Arguments = dict[str, Any]


def ours(model: Any, tokenizer: Any, arguments: Arguments) -> list[str]:
    """Answer as the step `evaluate` does."""
    from tuneline.evaluation.generation import generate

    return generate.generate_answers(
        model, tokenizer, arguments["prompts"], arguments["max_new_tokens"], arguments["batch_size"]
    )


def transformers(model: Any, tokenizer: Any, arguments: Arguments) -> list[str]:
    """Answer with `generate` in left-padded batches of similar lengths, as in its documentation."""
    import torch

    prompts, size = arguments["prompts"], arguments["batch_size"]
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    answers = [""] * len(prompts)
    for start in range(0, len(order), size):
        members = order[start : start + size]
        batch = [prompts[i] for i in members]
        rows = tokenizer(batch, add_special_tokens=False, padding=True, padding_side="left", return_tensors="pt")
        with torch.inference_mode():
            sequences = model.generate(**rows, max_new_tokens=arguments["max_new_tokens"], do_sample=False)
        texts = tokenizer.batch_decode(sequences[:, rows["input_ids"].shape[1] :], skip_special_tokens=True)
        for i, text in zip(members, texts, strict=True):
            answers[i] = text.strip()
    return answers


def work(arguments: Arguments) -> Arguments:
    """Load the model, answer, and return CPU-seconds and answers."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    arguments = {**arguments, **json.loads(Path(arguments["questions"]).read_text(encoding="utf-8"))}
    tokenizer = AutoTokenizer.from_pretrained(arguments["model"])
    model = AutoModelForCausalLM.from_pretrained(arguments["model"], dtype=getattr(torch, arguments["dtype"])).eval()
    start = time.process_time()
    answers = {"ours": ours, "transformers": transformers}[arguments["engine"]](model, tokenizer, arguments)
    return {"cpu_seconds": time.process_time() - start, "answers": answers}


if __name__ == "__main__":
    process.run_as_job(work)
