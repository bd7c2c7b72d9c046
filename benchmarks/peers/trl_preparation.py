"""Data preparation of trl as a job: building an `SFTTrainer` renders, tokenizes, masks and packs its dataset.

The cost of building the trainer itself is measured with a few rows and subtracted.
"""

from pathlib import Path
from typing import Any

from datasets import Dataset, disable_progress_bars
from transformers import LlamaConfig, LlamaForCausalLM
from trl import SFTConfig, SFTTrainer

from benchmarks.peers import ours, process
from tuneline.data import corpus, schema
from tuneline.data.corpus import Corpus
from tuneline.data.tokenizer.loader import load_tokenizer_from

NUM_WARMUP_ROWS = 16


def conversations(examples: Corpus, every: int = 1) -> Dataset:
    """Return every N-th example in the format of trl, `prompt` and `completion`."""
    conversations = [
        [{"role": turn["role"], "content": turn["content"]} for turn in example["messages"]]
        for batch in corpus.iter_batches(examples.only())
        for example in schema.from_arrow_batch(batch, ("messages",))
    ]
    return Dataset.from_list([{"prompt": turns[:-1], "completion": turns[-1:]} for turns in conversations[::every]])


def prepare_with_trl(rows: Dataset, tokenizer: Any, max_length: int, scratch: Path, *, packing: bool) -> Dataset:
    """Return the prepared dataset of a trainer with a minimal model."""
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
    )
    arguments = SFTConfig(
        output_dir=str(scratch / "output"),
        max_length=max_length,
        packing=packing,
        dataset_num_proc=None,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        report_to="none",
    )
    model = LlamaForCausalLM(config)
    return SFTTrainer(model, arguments, train_dataset=rows, processing_class=tokenizer).train_dataset


def measure(arguments: process.Result) -> process.Result:
    """Time trl on the aligned examples of a file."""
    disable_progress_bars()
    tokenizer, scratch = load_tokenizer_from(Path(arguments["model"])), Path(arguments["scratch"])
    rows = conversations(ours.align_records(ours.ingest_file(Path(arguments["data"]))), arguments["every"])
    prepare = lambda dataset: prepare_with_trl(dataset, tokenizer, arguments["max_length"], scratch, packing=True)  # noqa: E731
    warmup_rows = rows.select(range(NUM_WARMUP_ROWS))
    prepare(warmup_rows)  # warm-up: late imports and caches
    clock = process.Clock()
    clock.measure("without rows", lambda: prepare(warmup_rows))
    prepared = clock.measure("tokenize_pack", lambda: prepare(rows))
    for seconds in (clock.cpu, clock.wall):
        seconds["tokenize_pack"] -= seconds.pop("without rows")
    return {
        "cpu": clock.cpu,
        "wall": clock.wall,
        "rows": rows.num_rows - NUM_WARMUP_ROWS,
        "rows_out": prepared.num_rows,
        "tokens": sum(len(ids) for ids in prepared["input_ids"]),
    }


if __name__ == "__main__":
    process.run_as_job(measure)
