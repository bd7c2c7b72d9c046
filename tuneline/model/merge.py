"""Merge an adapter into its base, and measure that the model stayed the same.

The model as it was trained and the merged one see the same held-out rows; KL divergence and greedy agreement are taken
at every position that carries loss. Beyond the recipe's bound the merge is refused. An adapter on a quantized base is
folded into the dequantized weights, which are what it was trained on; where the library rounds the inputs of products,
too, in evaluation only, it is compared on those weights. What has no merged form goes on as an adapter, with its base
beside it.
"""

import json
import logging
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from tuneline import owner
from tuneline.config.sections.load import LoadStepConfig
from tuneline.config.training.base import MergeAdapterConfig
from tuneline.config.validation import quantization
from tuneline.data.corpus import Corpus
from tuneline.data.tokenization import preference_rows
from tuneline.data.tokenizer.loader import load_tokenizer_from
from tuneline.errors import RecipeError, VerificationError
from tuneline.identity import Manifest
from tuneline.model import adapter_bundle, attention, device, divergence, quantize, shard_merge, value_head
from tuneline.model.checkpoint import Checkpoint, CheckpointKind
from tuneline.model.divergence import compare_distributions
from tuneline.model.load import build_for_merge_on_meta, build_meta_model, load_for_merge, read_config
from tuneline.model.methods import families
from tuneline.model.methods.base import MethodFamily
from tuneline.model.positions import prediction_positions
from tuneline.model.source import manifest_folder

logger = logging.getLogger(__name__)

FLOAT32_BYTES = 4
MEMORY_FACTOR = 1.2
"""Times the size of the weights that a merge takes: a layer and the logits of a block beside them."""


@dataclass(frozen=True)
class MergeInputs:
    """What a merge starts from."""

    checkpoint: Checkpoint
    base_model: Manifest
    tokenizer: Manifest
    load: LoadStepConfig

    @property
    def family(self) -> MethodFamily:
        """The method's family."""
        return families[self.checkpoint.identity["method"]["type"]]


def merge_adapter(
    checkpoint: Checkpoint,
    base_model: Manifest,
    tokenizer: Manifest,
    rows: Corpus,
    load: LoadStepConfig,
    config: MergeAdapterConfig,
) -> Checkpoint:
    """Make a model that stands alone: weights, tokenizer, chat template and generation config.

    A fully trained model goes on with its tokenizer added; an adapter that cannot be merged with its base beside it.

    Raises:
        ProofError: The merged model strays from the adapter's by more than `config.max_kl`.
    """
    target = owner.scratch_folder() / f"merge-{checkpoint.content_hash()[:32]}"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    parts = MergeInputs(checkpoint, base_model, tokenizer, load)
    kind, facts = _write_model(target, parts, rows, config)
    for file in tokenizer.only().paths():
        shutil.copy2(file, target / file.name)
    add_eos_token(target)
    identity = {"checkpoint": checkpoint.content_hash(), "tokenizer": tokenizer.content_hash(), **checkpoint.identity}
    return Checkpoint(target, kind, identity, facts, disposable=True)


def _write_model(
    target: Path, parts: MergeInputs, rows: Corpus, config: MergeAdapterConfig
) -> tuple[CheckpointKind, dict[str, Any]]:
    if parts.checkpoint.kind == "full":
        shutil.copytree(parts.checkpoint.path, target, dirs_exist_ok=True)
        return "full", {}
    if reason := _unmergeable_reason(parts):
        adapter_bundle.write_bundle(target, parts.checkpoint.path, parts.base_model, parts.load)
        logger.info("%s; the base goes on beside the adapter", reason)
        return "adapter", {"merged": False, "reason": reason}
    held_out = rows.splits["validation"]
    probes = [preference_rows.flatten_row(row) for row in held_out.select(range(min(config.num_rows, len(held_out))))]
    return "merged", merge_into(target, parts, probes, config)


def _unmergeable_reason(parts: MergeInputs) -> str:
    """Say why an adapter cannot be folded in, or return an empty text."""
    if not parts.family.mergeable:
        return f"{parts.family.name} has no merged form"
    if (parts.checkpoint.path / value_head.HEAD_FILE).is_file():
        return "a reward adapter is used on the base that it shares with a policy"
    about = read_config(manifest_folder(parts.base_model), parts.load).to_dict()
    kind = quantize.quantization_kind(about)
    if kind is not None and not quantization.table()[kind].merges:
        return f"weights that come in {kind} have no full form to fold into"
    return ""


def add_eos_token(folder: Path) -> None:
    """Let generation stop at the token that ends an answer in training, beside those at which the base stops."""
    path = folder / "generation_config.json"
    about = json.loads(path.read_text()) if path.is_file() else {}
    known = about.get("eos_token_id")
    ids = known if isinstance(known, list) else [known] if known is not None else []
    end = load_tokenizer_from(folder).eos_token_id
    if end is not None and end not in ids:
        about["eos_token_id"] = [end, *ids] if ids else end
        path.write_text(json.dumps(about, indent=2, sort_keys=True) + "\n")


def merge_into(
    target: Path, parts: MergeInputs, probes: list[dict[str, Any]], config: MergeAdapterConfig
) -> dict[str, Any]:
    """Fold an adapter into its base and save the result, measured on rows.

    Args:
        target: Gets config and weights.
        parts: Adapter, base and tokenizer.
        probes: Rows with `input_ids`, `labels` and the `lengths` of their segments.
        config: Bound, precision and size of the files.

    Returns:
        What was measured: `kl` (nats a token), `greedy_agreement`, `positions`; nothing without rows.

    Raises:
        ProofError: The merged model strays from the adapter's by more than `config.max_kl`.
    """
    if shards := _prepare_shard_merge(parts, config):
        before, after = (_distributions(parts.family, model, probes) for model in (shards.adapted, shards.merged))
        facts = compare_distributions(before, after)
        _check_divergence(facts, config, quantized=False)
        shards.save(target, config.max_shard_size)
        return facts
    with TemporaryDirectory(dir=owner.scratch_folder()) as scratch:
        return _merge_in_memory(target, parts, probes, config, Path(scratch))


def _prepare_shard_merge(parts: MergeInputs, config: MergeAdapterConfig) -> shard_merge.ShardMerge | None:
    """Prepare a merge that never holds the model, where the method and the files of the base allow it."""
    kind = parts.checkpoint.facts.get("attention", "sdpa")
    bases = [build_for_merge_on_meta(parts.base_model, parts.tokenizer, parts.load, kind) for _ in range(2)]
    if bases[0] is None or bases[1] is None:
        return None
    folders = manifest_folder(parts.base_model), parts.checkpoint.path
    return shard_merge.prepare_shard_merge((bases[0], bases[1]), *folders, parts.family, getattr(torch, config.dtype))


def _merge_in_memory(
    target: Path, parts: MergeInputs, probes: list[dict[str, Any]], config: MergeAdapterConfig, scratch: Path
) -> dict[str, Any]:
    """Hold the model in memory, one at a time; what the first one said waits in a folder."""
    model = _load_with_adapter(parts, original=False)
    quantized = quantize.is_quantized(model)
    if quantize.rounds_inputs(model):
        del model
        model = _load_with_adapter(parts, original=False, dequantized=True)
    before = divergence.spool_to_disk(_distributions(parts.family, model, probes), scratch)
    if quantized:
        del model
        model = _load_with_adapter(parts, original=config.merge_base == "original", dequantized=True)
    merged = parts.family.merge(model).to(getattr(torch, config.dtype))
    facts = compare_distributions(before, _distributions(parts.family, merged, probes))
    _check_divergence(facts, config, quantized=quantized)
    merged.save_pretrained(target, max_shard_size=config.max_shard_size)
    return facts | ({"merge_base": config.merge_base} if quantized else {})


def _check_divergence(facts: dict[str, Any], config: MergeAdapterConfig, *, quantized: bool) -> None:
    if facts and not facts["kl"] <= config.max_kl:
        raise VerificationError(
            f"The merged model strays from the adapter's: KL {facts['kl']:.2e} nats a token, at most "
            f"{config.max_kl:.0e} allowed. {_advice(config, quantized=quantized)}"
        )


def _load_with_adapter(parts: MergeInputs, *, original: bool, dequantized: bool = False) -> Any:
    """Load the base as it was trained on, or what the adapter is folded into, with the adapter on it."""
    kind = parts.checkpoint.facts.get("attention", "sdpa")
    load = parts.load.model_copy(update={"quantization": None}) if original else parts.load
    base = load_for_merge(parts.base_model, parts.tokenizer, load, kind, _choose_device(parts, load))
    if original and quantize.is_quantized(base):
        raise RecipeError(
            "merge_adapter.merge_base: original, and this base model comes quantized, so there is no other. Set "
            "merge_base: dequantized."
        )
    if dequantized and not original:
        base = quantize.dequantize(base)
    return parts.family.attach_saved(base, parts.checkpoint.path).eval()


def _advice(config: MergeAdapterConfig, *, quantized: bool) -> str:
    if quantized and config.merge_base == "original":
        return "Set merge_adapter.merge_base: dequantized, which is what was trained."
    if config.dtype != "float32":
        return (
            f"Rounding to {config.dtype} adds to it: set merge_adapter.dtype: float32, or raise merge_adapter.max_kl."
        )
    return "Raise merge_adapter.max_kl only if you know why."


def _choose_device(parts: MergeInputs, load: LoadStepConfig) -> str:
    """Return the device that holds the model in float32: the CPU where the accelerator has no room for it."""
    about = read_config(manifest_folder(parts.base_model), load)
    if load.quantization or quantize.quantization_kind(about.to_dict()):
        return device.device_type()  # few bits, and the kernels may be nowhere else
    shape = build_meta_model(about, trust_remote_code=load.trust_remote_code)
    num_bytes = FLOAT32_BYTES * sum(part.numel() for part in shape.parameters())
    return device.device_type() if device.has_memory_for(MEMORY_FACTOR * num_bytes) else "cpu"


def _distributions(family: MethodFamily, model: Any, probes: list[dict[str, Any]]) -> Iterator[torch.Tensor]:
    """Yield log-probabilities at the positions that carry loss, in chunks of [positions, vocabulary]."""
    place = model.device if model.device.type != "meta" else torch.device(device.device_type())
    for row in probes:
        keep = prediction_positions({"labels": torch.tensor([row["labels"]])}).to(place)
        ids = torch.tensor([row["input_ids"]], device=place)
        inputs = {"input_ids": ids, **attention.packed_inputs(row["lengths"], place)}
        logits = partial(family.logits, model, inputs)
        yield from divergence.log_probabilities(logits, keep, divergence.vocabulary_size(model))
