"""A tiny chat model with a real tokenizer, and a small project that uses it. Both are built in code, offline."""

import json
from pathlib import Path
from typing import Any

import yaml

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TEXT = "The quick brown fox answers: A B C D. " * 40 + "What is one and two? It is three, or four. " * 40


def build_model(folder: Path, seed: int = 0) -> Path:
    """Write a random two-layer Llama of 60,000 parameters with a byte-level BPE tokenizer."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=360, special_tokens=special, initial_alphabet=alphabet)
    tokenizer.train_from_iterator([TEXT], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    fast.chat_template = CHATML
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=2,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


def store_model(folder: Path, content: str) -> str:
    """Write a stored model with text instead of weights; returns its content hash."""
    from tuneline.model.checkpoint import METADATA_FILE, Checkpoint

    files = folder / "files"
    files.mkdir(parents=True, exist_ok=True)
    (files / "model.safetensors").write_text(content)
    checkpoint = Checkpoint(files, "full")
    metadata = {"kind": checkpoint.kind, "identity": checkpoint.identity, "facts": {}}
    metadata["sha256"] = checkpoint.content_hash()
    (folder / METADATA_FILE).write_text(json.dumps({**metadata, "files": checkpoint.files()}))
    return checkpoint.content_hash()


def alpaca_rows(count: int, start: int = 0) -> list[dict[str, str]]:
    """Return short distinct rows."""
    numbers = range(start, start + count)
    return [{"instruction": f"What is {i} and {i}?", "input": "", "output": f"It is {2 * i}."} for i in numbers]


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write rows, one per line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_texts(path: Path, count: int = 40) -> Path:
    """Write short distinct texts."""
    return write_jsonl(
        path, [{"text": f"The brown fox answers {i}: it is {i} and {i}, or {2 * i}."} for i in range(count)]
    )


def write_preferences(folder: Path, count: int = 30) -> None:
    """Write pairs of answers, and labelled single answers; a random model mostly prefers the wrong ones."""
    pairs, single = [], []
    for i in range(count):
        good, bad, prompt = f"The quick fox {i}!", f"It is {2 * i}.", f"What is {i} and {i}?"
        pairs.append({"prompt": prompt, "chosen": good, "rejected": bad})
        single.append({"prompt": prompt, "completion": good if i % 2 else bad, "label": bool(i % 2)})
    write_jsonl(folder / "pairs.jsonl", pairs)
    write_jsonl(folder / "labelled.jsonl", single)


def write_exam(folder: Path) -> Path:
    """Write an exam with one subject: two shots and four questions."""
    line = '"Which is number {i}?",one,two,three,four,{answer}\n'
    for split, answers in (("dev", "AB"), ("test", "ABCD")):
        path = folder / split / "numbers.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(line.format(i=f"{split}{i}", answer=answer) for i, answer in enumerate(answers)))
    return folder


def recipe(**changes: Any) -> dict[str, Any]:
    """Return a small recipe with paths relative to the project; keyword arguments replace its keys."""
    base: dict[str, Any] = {
        "stage": "sft",
        "model": {"type": "directory", "path": "model"},
        "sources": [
            {"name": "first", "path": "data/first.jsonl", "format": "alpaca"},
            {"name": "second", "path": "data/second.jsonl", "format": "openai"},
        ],
        "exams": [{"name": "exam", "path": "exam", "num_shots": 2}],
        "merge": {"validation_fraction": 0.3},
        "tokenize": {"max_length": 256},
        "method": {"type": "lora", "r": 4, "lora_alpha": 8},
        "load": {"dtype": "float32"},
        "train": {"learning_rate": 1e-3, "max_steps": 2},
        "evaluate": {"max_new_tokens": 4, "max_items": 6},
        "registry": {"model_name": "tiny"},
    }
    return base | changes


def write_config(path: Path, recipe: dict[str, Any], **top: Any) -> Path:
    """Write a run configuration."""
    path.write_text(yaml.safe_dump({**top, "parameters": {"recipe": recipe}}, sort_keys=False))
    return path


def build_project(folder: Path) -> Path:
    """Write a project: model, two datasets, an exam, and `run.yaml`."""
    build_model(folder / "model")
    write_jsonl(folder / "data" / "first.jsonl", alpaca_rows(20))
    chats = [
        {"messages": [{"role": "user", "content": f"Say {i}"}, {"role": "assistant", "content": f"{i} it is."}]}
        for i in range(20)
    ]
    write_jsonl(folder / "data" / "second.jsonl", chats)
    write_exam(folder / "exam")
    write_config(folder / "run.yaml", recipe())
    return folder
