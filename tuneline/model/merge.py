"""Merge an adapter into its base, and measure that the model stayed the same.

The adapter's model and the merged one see the same held-out rows; KL divergence and greedy agreement are taken at every
position that carries loss. Beyond the recipe's bound the merge is refused.
"""

import shutil
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from tuneline import state
from tuneline.config.train import MergeAdapterConfig
from tuneline.data.corpus import Corpus
from tuneline.errors import ProofError
from tuneline.identity import Manifest
from tuneline.model import attention
from tuneline.model.checkpoint import Checkpoint
from tuneline.model.load import load_model

IGNORE_INDEX = -100


def merge_adapter(
    checkpoint: Checkpoint, base_model: Manifest, tokenizer: Manifest, rows: Corpus, config: MergeAdapterConfig
) -> Checkpoint:
    """Make a whole model of a checkpoint: merged weights, tokenizer, chat template and generation config.

    A fully trained model goes on with its tokenizer added.

    Raises:
        ProofError: The merged model strays from the adapter's by more than `config.max_kl`.
    """
    target = state.folder("work") / f"merge-{checkpoint.content_hash()[:32]}"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    if checkpoint.kind == "adapter":
        facts = _merge_into(target, checkpoint, Path(base_model.only().location), rows.splits["validation"], config)
    else:
        shutil.copytree(checkpoint.path, target, dirs_exist_ok=True)
        facts = {}
    for file in tokenizer.only().paths():
        shutil.copy2(file, target / file.name)
    kind = "merged" if checkpoint.kind == "adapter" else "full"
    identity = {"checkpoint": checkpoint.content_hash(), "tokenizer": tokenizer.content_hash(), **checkpoint.identity}
    return Checkpoint(target, kind, identity, facts, disposable=True)


def _merge_into(
    target: Path, checkpoint: Checkpoint, base: Path, held_out: Dataset, config: MergeAdapterConfig
) -> dict[str, Any]:
    from peft import PeftModel

    model = PeftModel.from_pretrained(load_model(base, attention="segment"), checkpoint.path).eval()
    probes = held_out.select(range(min(config.num_rows, len(held_out))))
    before = [_logits(model, row) for row in probes]
    merged = model.merge_and_unload()
    after = [_logits(merged, row) for row in probes]
    facts = _compare(before, after)
    if facts and facts["kl"] > config.max_kl:
        raise ProofError(
            f"The merged model strays from the adapter's: KL {facts['kl']:.2e} nats a token, at most "
            f"{config.max_kl:.0e} allowed. Raise merge_adapter.max_kl only if you know why."
        )
    merged.save_pretrained(target)
    return facts


@torch.no_grad()
def _logits(model: Any, row: dict[str, Any]) -> torch.Tensor:
    """Return log-probabilities at the positions that carry loss, [positions, vocabulary]."""
    labels = torch.tensor(row["labels"])
    keep = (labels[1:] != IGNORE_INDEX).nonzero()[:, 0].to(model.device)
    inputs = attention.packed_inputs(row["lengths"], model.device)
    ids = torch.tensor([row["input_ids"]], device=model.device)
    return model(input_ids=ids, logits_to_keep=keep, **inputs).logits[0].float().log_softmax(-1)


def _compare(before: list[torch.Tensor], after: list[torch.Tensor]) -> dict[str, Any]:
    if not before:
        return {}
    kl = torch.cat([(p.exp() * (p - q)).sum(-1) for p, q in zip(before, after, strict=True)])
    same = torch.cat([p.argmax(-1) == q.argmax(-1) for p, q in zip(before, after, strict=True)])
    return {"kl": float(kl.mean()), "greedy_agreement": float(same.float().mean()), "positions": len(kl)}
