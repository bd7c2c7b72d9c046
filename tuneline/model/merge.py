"""Merge an adapter into its base, and measure that the model stayed the same.

The adapter's model and the merged one see the same held-out rows; KL divergence and greedy agreement are taken at every
position that carries loss. Beyond the recipe's bound the merge is refused.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from tuneline import state
from tuneline.config.train import MergeAdapterConfig
from tuneline.data.corpus import Corpus
from tuneline.data.schema import IGNORE_INDEX
from tuneline.data.tokenizer import load_tokenizer_from
from tuneline.errors import ProofError
from tuneline.identity import Manifest
from tuneline.model import attention
from tuneline.model.checkpoint import Checkpoint
from tuneline.model.load import load_model


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
    _stop_where_answers_end(target)
    kind = "merged" if checkpoint.kind == "adapter" else "full"
    identity = {"checkpoint": checkpoint.content_hash(), "tokenizer": tokenizer.content_hash(), **checkpoint.identity}
    return Checkpoint(target, kind, identity, facts, disposable=True)


def _stop_where_answers_end(folder: Path) -> None:
    """Let generation stop at the token that ends an answer in training, beside those at which the base stops."""
    path = folder / "generation_config.json"
    about = json.loads(path.read_text()) if path.is_file() else {}
    known = about.get("eos_token_id")
    ids = known if isinstance(known, list) else [known] if known is not None else []
    end = load_tokenizer_from(folder).eos_token_id
    if end is not None and end not in ids:
        about["eos_token_id"] = [end, *ids] if ids else end
        path.write_text(json.dumps(about, indent=2, sort_keys=True) + "\n")


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
