"""Supervised fine-tuning on a thin `transformers.Trainer`.

Ours: rows are packed without padding, logits are computed at trained positions only, and the loss is the sum over
trained tokens divided by their number in the whole optimiser step, so that accumulation and batch size do not weigh
rows.
"""

import platform
import shutil
import time
from importlib.metadata import version
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from transformers import Trainer, TrainingArguments, set_seed

from tuneline import progress, state
from tuneline.config.train import Method, TrainConfig
from tuneline.data.corpus import Corpus
from tuneline.data.schema import IGNORE_INDEX
from tuneline.errors import ProofError
from tuneline.identity import Manifest, digest
from tuneline.model import attention, precision
from tuneline.model.adapt import methods
from tuneline.model.checkpoint import Checkpoint
from tuneline.model.load import load_model
from tuneline.train.callbacks import Listener, Recorder, memory_bytes
from tuneline.train.collate import collate
from tuneline.train.report import TrainingReport

CHECKED_ROWS, CHECKED_EXAMPLES, CHECKED_TOKENS = 2, 3, 64
"""How much is compared before training: rows, examples of each, tokens of each."""

LIBRARIES = ("torch", "transformers", "peft", "accelerate")


class SFTTrainer(Trainer):
    """Cross entropy at trained positions, weighted by tokens."""

    tokens_seen = 0

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        labels = inputs.pop("labels")[0]
        self.tokens_seen += labels.numel()
        keep = (labels[1:] != IGNORE_INDEX).nonzero()[:, 0]
        logits = model(**inputs, logits_to_keep=keep).logits[0]
        total = cross_entropy(logits.float(), labels[keep + 1], reduction="sum")
        return total / (num_items_in_batch if num_items_in_batch is not None else len(keep))


def train(
    rows: Corpus, base_model: Manifest, method: Method, config: TrainConfig, listeners: tuple[Listener, ...] = ()
) -> tuple[Checkpoint, TrainingReport]:
    """Fine-tune a base model on tokenized rows.

    Args:
        rows: Splits `train` and `validation` of `tuneline.data.tokenize`.
        base_model: Where the weights lie.
        method: What is trained.
        config: The optimisation.
        listeners: Called with the figures of each optimiser step.

    Returns:
        A checkpoint in a scratch folder under the state root, and a report.

    Raises:
        ProofError: Packed examples see each other in this architecture, or the loss is no number.
    """
    start = time.monotonic()
    set_seed(config.seed)
    dtype, reason = precision.choose(config.dtype, trains_all=method.type == "full")
    model = load_model(Path(base_model.only().location), dtype, config.attention)
    isolation = _isolation(model, rows, config, dtype)
    model = methods[method.type](model, method)
    work = _work_folder(rows, base_model, method, config)
    trainer = _trainer(model, rows, config, work)
    recorder = _run(trainer, listeners)
    validation_loss = mean_loss(model, rows, "validation")
    checkpoint = _save(model, work, base_model, rows, method, config)
    summary = _summary(trainer, recorder, rows, model, start) | {"validation_loss": validation_loss}
    decisions = {"dtype": f"{dtype}: {reason}", "isolation": isolation}
    return checkpoint, _report(method, config, decisions, recorder, summary)


def _isolation(model: Any, rows: Corpus, config: TrainConfig, dtype: torch.dtype) -> str:
    """Prove on examples of the first rows that those which share a row do not see each other."""
    shared = [
        _segments(row) for row in rows.splits["train"].select(range(min(CHECKED_ROWS, len(rows.splits["train"]))))
    ]
    batches = [segments for segments in shared if len(segments) > 1]
    if not batches and config.per_device_train_batch_size == 1:
        return "each example has a row of its own"
    leak = attention.check_isolation(model, batches, tolerance=1e-2 if dtype == torch.float32 else 0.5)
    return f"relative difference {leak:.1e} between packed and alone"


def _segments(row: dict[str, Any]) -> list[list[int]]:
    """Return the beginnings of the first examples of a row."""
    ends = [0, *accumulate(row["lengths"])]
    ids = row["input_ids"]
    return [ids[a : min(b, a + CHECKED_TOKENS)] for a, b in pairwise(ends[: CHECKED_EXAMPLES + 1])]


def _work_folder(rows: Corpus, base_model: Manifest, method: Method, config: TrainConfig) -> Path:
    key = digest([rows.content_hash(), base_model.content_hash(), method.model_dump(), config.model_dump()])
    work = state.folder("work") / f"train-{key[:32]}"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    return work


def _trainer(model: Any, rows: Corpus, config: TrainConfig, work: Path) -> SFTTrainer:
    on_gpu = torch.cuda.is_available()
    chosen = config.model_dump(exclude={"dtype", "attention"})
    args = TrainingArguments(
        output_dir=str(work / "state"),
        **chosen,
        bf16=on_gpu and torch.cuda.is_bf16_supported(),
        use_cpu=not on_gpu,
        logging_steps=1,
        logging_nan_inf_filter=False,  # the filter would show the last finite loss instead
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=on_gpu,
        average_tokens_across_devices=True,
    )
    args._n_gpu = min(args.n_gpu, 1)  # one process uses one device: DataParallel would split the packed row
    trainer = SFTTrainer(model=model, args=args, train_dataset=rows.splits["train"], data_collator=collate)
    trainer.model_accepts_loss_kwargs = True
    return trainer


def _run(trainer: SFTTrainer, listeners: tuple[Listener, ...]) -> Recorder:
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)
    steps = trainer.args.max_steps if trainer.args.max_steps > 0 else _steps(trainer)
    with progress.bar("training", steps) as advance:
        recorder = Recorder(advance, listeners, lambda: trainer.tokens_seen)
        trainer.add_callback(recorder)
        trainer.train()
    if any(entry["loss"] != entry["loss"] for entry in recorder.history):
        raise ProofError("The loss became NaN, so the weights are worthless. Lower train.learning_rate.")
    return recorder


def _steps(trainer: SFTTrainer) -> int:
    per_epoch = max(len(trainer.get_train_dataloader()) // trainer.args.gradient_accumulation_steps, 1)
    return int(per_epoch * trainer.args.num_train_epochs)


@torch.no_grad()
def mean_loss(model: Any, rows: Corpus, split: str) -> float:
    """Return the mean cross entropy (nats) over the trained tokens of a split; NaN where it is empty."""
    model.eval()
    total, count = 0.0, 0
    for row in rows.splits[split]:
        inputs = {name: _to(value, model.device) for name, value in collate([row]).items()}
        labels = inputs.pop("labels")[0]
        keep = (labels[1:] != IGNORE_INDEX).nonzero()[:, 0]
        logits = model(**inputs, logits_to_keep=keep).logits[0].float()
        total += float(cross_entropy(logits, labels[keep + 1], reduction="sum"))
        count += len(keep)
    return total / count if count else float("nan")


def _to(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, torch.Tensor) else value


def _save(
    model: Any, work: Path, base_model: Manifest, rows: Corpus, method: Method, config: TrainConfig
) -> Checkpoint:
    """Write the trained weights; nothing in the files names this machine."""
    shutil.rmtree(work / "state", ignore_errors=True)
    if method.type != "full":
        for adapter in model.peft_config.values():
            adapter.base_model_name_or_path = base_model.only().name
    options = {} if method.type == "full" else {"save_embedding_layers": False}  # "auto" asks the hub
    model.save_pretrained(work, **options)
    (work / "README.md").unlink(missing_ok=True)
    identity = {
        "base_model": base_model.content_hash(),
        "rows": rows.content_hash(),
        "tokenization": rows.identity,
        "method": method.model_dump(),
        "train": config.model_dump(),
    }
    return Checkpoint(work, "full" if method.type == "full" else "adapter", identity, disposable=True)


def _summary(trainer: SFTTrainer, recorder: Recorder, rows: Corpus, model: Any, start: float) -> dict[str, float]:
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    losses = [entry["loss"] for entry in recorder.history]
    return {
        "seconds": time.monotonic() - start,
        "tokens": float(trainer.tokens_seen),
        "steps": float(trainer.state.global_step),
        "first_loss": losses[0],
        "final_loss": sum(losses[-3:]) / len(losses[-3:]),
        "peak_memory_bytes": float(max(recorder.peak_memory_bytes, memory_bytes())),
        "parameters": float(sum(n for n, _ in sizes)),
        "trainable_parameters": float(sum(n for n, trained in sizes if trained)),
    }


def _report(
    method: Method, config: TrainConfig, decisions: dict[str, str], recorder: Recorder, summary: dict[str, float]
) -> TrainingReport:
    environment = {name: version(name) for name in LIBRARIES} | {
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
        "threads": str(torch.get_num_threads()),
    }
    return TrainingReport(
        method=method.model_dump(),
        train=config.model_dump(),
        decisions=decisions,
        history=recorder.history,
        summary=summary,
        environment=environment,
    )
