"""Merge an adapter into its base model and verify that the output does not change.

The model with its adapter and the merged model process the same validation rows. KL divergence and greedy agreement are
measured at every position with loss; above the recipe's limit the merge is rejected. An adapter on a quantized base is
merged into the dequantized weights, which it was trained on. Where the library also rounds layer inputs in evaluation
mode, the comparison uses the dequantized weights too. An adapter that cannot be merged is stored with its base model.
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
"""Memory of a merge as a multiple of the weights: it needs room for a layer and the logits of a block."""


@dataclass(frozen=True)
class MergeInputs:
    """Inputs of a merge."""

    checkpoint: Checkpoint
    base_model: Manifest
    tokenizer: Manifest
    load: LoadStepConfig

    @property
    def family(self) -> MethodFamily:
        """The method that trained the adapter."""
        return families[self.checkpoint.identity["method"]["type"]]


def merge_adapter(
    checkpoint: Checkpoint,
    base_model: Manifest,
    tokenizer: Manifest,
    rows: Corpus,
    load: LoadStepConfig,
    config: MergeAdapterConfig,
) -> Checkpoint:
    """Build a self-contained model: weights, tokenizer, chat template and generation config.

    A fully trained model is copied and gets its tokenizer; an adapter that cannot be merged is stored with its base.

    Raises:
        VerificationError: The KL divergence between adapter and merged model exceeds `config.max_kl`.
    """
    target = owner.scratch_folder() / f"merge-{checkpoint.content_hash()[:32]}"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    inputs = MergeInputs(checkpoint, base_model, tokenizer, load)
    kind, facts = _write_model(target, inputs, rows, config)
    for file in tokenizer.only().paths():
        shutil.copy2(file, target / file.name)
    add_eos_token(target)
    identity = {"checkpoint": checkpoint.content_hash(), "tokenizer": tokenizer.content_hash(), **checkpoint.identity}
    return Checkpoint(target, kind, identity, facts, disposable=True)


def _write_model(
    target: Path, inputs: MergeInputs, rows: Corpus, config: MergeAdapterConfig
) -> tuple[CheckpointKind, dict[str, Any]]:
    if inputs.checkpoint.kind == "full":
        shutil.copytree(inputs.checkpoint.path, target, dirs_exist_ok=True)
        return "full", {}
    if reason := _unmergeable_reason(inputs):
        adapter_bundle.write_bundle(target, inputs.checkpoint.path, inputs.base_model, inputs.load)
        logger.info("%s; the adapter is stored with its base model", reason)
        return "adapter", {"merged": False, "reason": reason}
    validation = rows.splits["validation"]
    probes = [
        preference_rows.flatten_row(row) for row in validation.select(range(min(config.num_rows, len(validation))))
    ]
    return "merged", merge_into(target, inputs, probes, config)


def _unmergeable_reason(inputs: MergeInputs) -> str:
    """Return why an adapter cannot be merged, or an empty string."""
    if not inputs.family.mergeable:
        return f"{inputs.family.name} cannot be merged"
    if value_head.has_value_head(inputs.checkpoint.path):
        return "a reward adapter is used on the base model that it shares with the policy"
    model_config = read_config(manifest_folder(inputs.base_model), inputs.load).to_dict()
    kind = quantize.quantization_kind(model_config)
    if kind is not None and not quantization.table()[kind].merges:
        return f"{kind} weights cannot be dequantized for a merge"
    return ""


def add_eos_token(folder: Path) -> None:
    """Add the token that ends an answer in training to the `eos_token_id` of the generation config."""
    path = folder / "generation_config.json"
    generation_config = json.loads(path.read_text()) if path.is_file() else {}
    eos = generation_config.get("eos_token_id")
    ids = eos if isinstance(eos, list) else [eos] if eos is not None else []
    end = load_tokenizer_from(folder).eos_token_id
    if end is not None and end not in ids:
        generation_config["eos_token_id"] = [end, *ids] if ids else end
        path.write_text(json.dumps(generation_config, indent=2, sort_keys=True) + "\n")


def merge_into(
    target: Path, inputs: MergeInputs, probes: list[dict[str, Any]], config: MergeAdapterConfig
) -> dict[str, Any]:
    """Merge an adapter into its base, verify the result on rows and save it.

    Args:
        target: Folder for config and weights.
        inputs: Adapter, base and tokenizer.
        probes: Rows with `input_ids`, `labels` and the `lengths` of their segments.
        config: KL limit, dtype and maximum file size.

    Returns:
        `kl` (nats per token), `greedy_agreement` and `positions`; empty without rows.

    Raises:
        VerificationError: The KL divergence between adapter and merged model exceeds `config.max_kl`.
    """
    if shards := _prepare_shard_merge(inputs, config):
        before, after = (_distributions(inputs.family, model, probes) for model in (shards.adapted, shards.merged))
        facts = compare_distributions(before, after)
        _check_divergence(facts, config, quantized=False)
        shards.save(target, config.max_shard_size)
        return facts
    with TemporaryDirectory(dir=owner.scratch_folder()) as scratch:
        return _merge_in_memory(target, inputs, probes, config, Path(scratch))


def _prepare_shard_merge(inputs: MergeInputs, config: MergeAdapterConfig) -> shard_merge.ShardMerge | None:
    """Prepare a merge shard by shard if the method and the files of the base support it."""
    kind = inputs.checkpoint.facts.get("attention", "sdpa")
    bases = [build_for_merge_on_meta(inputs.base_model, inputs.tokenizer, inputs.load, kind) for _ in range(2)]
    if bases[0] is None or bases[1] is None:
        return None
    folders = manifest_folder(inputs.base_model), inputs.checkpoint.path
    return shard_merge.prepare_shard_merge((bases[0], bases[1]), *folders, inputs.family, getattr(torch, config.dtype))


def _merge_in_memory(
    target: Path, inputs: MergeInputs, probes: list[dict[str, Any]], config: MergeAdapterConfig, scratch: Path
) -> dict[str, Any]:
    """Load one model at a time; the distributions of the first are spooled to a folder."""
    model = _load_with_adapter(inputs, original=False)
    quantized = quantize.is_quantized(model)
    if quantize.rounds_inputs(model):
        del model
        model = _load_with_adapter(inputs, original=False, dequantized=True)
    before = divergence.spool_to_disk(_distributions(inputs.family, model, probes), scratch)
    if quantized:
        del model
        model = _load_with_adapter(inputs, original=config.merge_base == "original", dequantized=True)
    merged = inputs.family.merge(model).to(getattr(torch, config.dtype))
    facts = compare_distributions(before, _distributions(inputs.family, merged, probes))
    _check_divergence(facts, config, quantized=quantized)
    merged.save_pretrained(target, max_shard_size=config.max_shard_size)
    return facts | ({"merge_base": config.merge_base} if quantized else {})


def _check_divergence(facts: dict[str, Any], config: MergeAdapterConfig, *, quantized: bool) -> None:
    if facts and not facts["kl"] <= config.max_kl:
        raise VerificationError(
            f"KL divergence between adapter and merged model: {facts['kl']:.2e} nats per token, at most "
            f"{config.max_kl:.0e} allowed (merge_adapter.max_kl). {_advice(config, quantized=quantized)}"
        )


def _load_with_adapter(inputs: MergeInputs, *, original: bool, dequantized: bool = False) -> Any:
    """Load the base that the adapter was trained on, or the one it is merged into, with the adapter attached."""
    kind = inputs.checkpoint.facts.get("attention", "sdpa")
    load = inputs.load.model_copy(update={"quantization": None}) if original else inputs.load
    base = load_for_merge(inputs.base_model, inputs.tokenizer, load, kind, _choose_device(inputs, load))
    if original and quantize.is_quantized(base):
        raise RecipeError(
            "merge_adapter.merge_base: original, but this base model is published in quantized form, so there is no "
            "original. Set merge_base: dequantized."
        )
    if dequantized and not original:
        base = quantize.dequantize(base)
    return inputs.family.attach_saved(base, inputs.checkpoint.path).eval()


def _advice(config: MergeAdapterConfig, *, quantized: bool) -> str:
    if quantized and config.merge_base == "original":
        return "Set merge_adapter.merge_base: dequantized, the weights that the adapter was trained on."
    if config.dtype != "float32":
        return (
            f"Rounding to {config.dtype} contributes to it: set merge_adapter.dtype: float32, or raise "
            "merge_adapter.max_kl."
        )
    return "Raise merge_adapter.max_kl only if you know the reason for the difference."


def _choose_device(inputs: MergeInputs, load: LoadStepConfig) -> str:
    """Return the device for the float32 model: the CPU if the accelerator has too little memory."""
    model_config = read_config(manifest_folder(inputs.base_model), load)
    if load.quantization or quantize.quantization_kind(model_config.to_dict()):
        return device.device_type()  # small, and its kernels may exist on this device only
    meta_model = build_meta_model(model_config, trust_remote_code=load.trust_remote_code)
    num_bytes = FLOAT32_BYTES * sum(parameter.numel() for parameter in meta_model.parameters())
    return device.device_type() if device.has_memory_for(MEMORY_FACTOR * num_bytes) else "cpu"


def _distributions(family: MethodFamily, model: Any, probes: list[dict[str, Any]]) -> Iterator[torch.Tensor]:
    """Yield log-probabilities at the positions with loss, in chunks of [positions, vocabulary]."""
    target_device = model.device if model.device.type != "meta" else torch.device(device.device_type())
    for row in probes:
        keep = prediction_positions({"labels": torch.tensor([row["labels"]])}).to(target_device)
        ids = torch.tensor([row["input_ids"]], device=target_device)
        model_inputs = {"input_ids": ids, **attention.packed_inputs(row["lengths"], target_device)}
        logits = partial(family.logits, model, model_inputs)
        yield from divergence.log_probabilities(logits, keep, divergence.vocabulary_size(model))
