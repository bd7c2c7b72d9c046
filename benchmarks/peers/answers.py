"""Job: prompts of different lengths, answered greedily by our evaluator or by a padded batch of transformers."""

import json
import time
from pathlib import Path
from typing import Any

from benchmarks.peers import process

Told = dict[str, Any]


def ours(model: Any, tokenizer: Any, told: Told) -> list[str]:
    """Answer as the step `evaluate` does."""
    from tuneline.evaluation.generation import generate

    return generate.generate_answers(model, tokenizer, told["prompts"], told["max_new_tokens"], told["batch_size"])


def transformers(model: Any, tokenizer: Any, told: Told) -> list[str]:
    """Answer by `generate` in batches of like lengths, padded on the left, as its documentation does."""
    import torch

    prompts, size = told["prompts"], told["batch_size"]
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    found = [""] * len(prompts)
    for start in range(0, len(order), size):
        members = order[start : start + size]
        batch = [prompts[i] for i in members]
        rows = tokenizer(batch, add_special_tokens=False, padding=True, padding_side="left", return_tensors="pt")
        with torch.inference_mode():
            made = model.generate(**rows, max_new_tokens=told["max_new_tokens"], do_sample=False)
        texts = tokenizer.batch_decode(made[:, rows["input_ids"].shape[1] :], skip_special_tokens=True)
        for i, text in zip(members, texts, strict=True):
            found[i] = text.strip()
    return found


def work(told: Told) -> Told:
    """Load the model, answer, and return CPU-seconds and answers."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    told = {**told, **json.loads(Path(told["questions"]).read_text(encoding="utf-8"))}
    tokenizer = AutoTokenizer.from_pretrained(told["model"])
    model = AutoModelForCausalLM.from_pretrained(told["model"], dtype=getattr(torch, told["dtype"])).eval()
    start = time.process_time()
    found = {"ours": ours, "transformers": transformers}[told["engine"]](model, tokenizer, told)
    return {"cpu_seconds": time.process_time() - start, "answers": found}


if __name__ == "__main__":
    process.job(work)
