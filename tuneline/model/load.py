"""Load a base model for training, or any model for inference.

Order: config, RoPE scaling, dtype, attention, quantization, weights, vocabulary, adapters to merge, patches. Automatic
choices are reported in `LoadedModel.decisions`.
"""

import copy
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights  # type: ignore[import-untyped]
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel
from transformers import logging as transformers_logging

from tuneline.config.sections.load import LoadStepConfig, ModelLoadOptions
from tuneline.data.tokenizer import new_tokens
from tuneline.data.tokenizer.loader import load_tokenizer_from
from tuneline.errors import SourceError
from tuneline.identity import Manifest
from tuneline.model import adapter_bundle, device, patches, precision, quantize, rope, source, vocabulary
from tuneline.model.attention import implementation, shifted
from tuneline.model.methods import adapter_method, families
from tuneline.model.precision import Precision

RANDOM_WEIGHTS_SEED = 0
"""Seed of random weights: training and comparison with the base model need the same ones."""


@dataclass(frozen=True)
class LoadedModel:
    """A base model in memory, and the choices made while loading it."""

    model: PreTrainedModel
    precision: Precision
    attention: str
    """Attention implementation, as in transformers."""

    new_ids: tuple[int, ...] = ()
    """Tokens added by the recipe; their rows are random until they are trained."""

    decisions: dict[str, str] = field(default_factory=dict)
    """Choices and reasons, by subject."""


def load_for_training(
    base_model: Manifest, tokenizer: Manifest, config: LoadStepConfig, *, trains_all: bool, packed: bool
) -> LoadedModel:
    """Load a base model for training.

    Args:
        base_model: Weights, followed by the adapters of the recipe.
        tokenizer: Tokenizer with the new tokens.
        config: Load options.
        trains_all: Whether every weight is trained.
        packed: Whether several examples share a row.

    Raises:
        RecipeError: The machine or the model does not support the recipe.
        SourceError: The weights do not match the config.
    """
    folder = source.manifest_folder(base_model)
    model_config = read_config(folder, config)
    dtypes = precision.choose_precision(config.dtype, trains_all=trains_all, model_dtype=model_config.dtype)
    compute_dtype = dtypes.autocast or dtypes.weights
    s2 = config.s2_group_size_ratio is not None
    kind, reason = implementation.choose_attention(
        config.attention, config=model_config, dtype=compute_dtype, packed=packed, s2=s2
    )
    decisions = {"dtype": f"{dtypes.weights}: {dtypes.reason}", "attention": f"{kind}: {reason}"}
    decisions |= _scale_rope(model_config, config)
    model = read_weights(folder, model_config, config, dtypes.weights, kind)
    if quantize.is_quantized(model):
        quantize.prepare_for_training(model)
    new_ids = add_new_tokens(model, source.manifest_folder(tokenizer))
    model = _merge_adapters(model, _adapters_to_merge(base_model, config))
    if config.s2_group_size_ratio is not None:
        decisions["s2"] = shifted.enable_shifted_attention(model, config.s2_group_size_ratio, config.max_length)
    decisions |= patches.apply_patches(model, config)
    return LoadedModel(model, dtypes, kind, new_ids, decisions)


def load_for_merge(
    base_model: Manifest, tokenizer: Manifest, config: LoadStepConfig, kind: str, to: str | None = None
) -> PreTrainedModel:
    """Load a base model with its training options, in float32 unless it is quantized.

    Args:
        base_model: Weights, followed by the adapters of the recipe.
        tokenizer: Tokenizer with the new tokens.
        config: Load options of the training.
        kind: Attention implementation, as in transformers.
        to: Device; by default the device of this process.
    """
    return _load_assembled(
        source.manifest_folder(base_model),
        source.manifest_folder(tokenizer),
        _adapters_to_merge(base_model, config),
        config,
        kind,
        to=to,
    )


def build_for_merge_on_meta(
    base_model: Manifest, tokenizer: Manifest, config: LoadStepConfig, kind: str
) -> PreTrainedModel | None:
    """Build the model of `load_for_merge` with parameters on the meta device and real buffers.

    Returns:
        None if the weight files alone do not define the model: it is quantized, random, has custom code, new tokens or
        adapters to merge.
    """
    folder = source.manifest_folder(base_model)
    model_config = read_config(folder, config)
    is_special = config.quantization or config.train_from_scratch or config.trust_remote_code
    is_extended = new_tokens.new_token_ids(source.manifest_folder(tokenizer)) or _adapters_to_merge(base_model, config)
    if is_special or is_extended or quantize.quantization_kind(model_config.to_dict()):
        return None
    _scale_rope(model_config, config)
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(model_config, dtype=torch.float32, attn_implementation=kind)
    model.tie_weights()
    if model.can_generate() and (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    return model.eval()


def load_for_inference(
    base_model: Manifest, tokenizer: Manifest, config: ModelLoadOptions, dtype: torch.dtype = torch.float32
) -> PreTrainedModel:
    """Load a base model with its adapters merged, for inference with this tokenizer.

    Attention is full and `dtype` is independent of training, so that base and trained model are compared fairly.
    """
    folders = source.manifest_folder(base_model), source.manifest_folder(tokenizer)
    return _load_assembled(*folders, source.adapter_folders(base_model), config.plain(), dtype=dtype)


def load_model(
    folder: Path,
    dtype: torch.dtype = torch.float32,
    attention: str | None = None,
    allowed: ModelLoadOptions | None = None,
) -> PreTrainedModel:
    """Load a model directory onto the device of this process: a whole model, or an adapter bundle with its base.

    Args:
        folder: Output of `save_pretrained` or `tuneline.model.merge`.
        dtype: Dtype of the weights.
        attention: Attention implementation, as in transformers; by default transformers chooses.
        allowed: Load options of the recipe (pickle files, custom code); by default neither is allowed.
    """
    if adapter_bundle.is_adapter_bundle(folder):
        base = _load_assembled(
            folder / adapter_bundle.BASE_FOLDER,
            folder,
            adapter_bundle.adapter_folders(folder),
            adapter_bundle.read_load_config(folder),
            attention,
            dtype,
        )
        return families[adapter_method(folder)].attach_saved(base, folder)
    config = allowed or ModelLoadOptions()
    return read_weights(folder, read_config(folder, config), config, dtype, attention)


def _load_assembled(
    folder: Path,
    tokenizer: Path,
    adapters: Iterable[Path],
    config: ModelLoadOptions,
    attention: str | None = None,
    dtype: torch.dtype = torch.float32,
    to: str | None = None,
) -> PreTrainedModel:
    """Load a base model with scaled positions, rows for new tokens, and merged adapters."""
    model_config = read_config(folder, config)
    _scale_rope(model_config, config)
    model = read_weights(folder, model_config, config, dtype, attention, to)
    add_new_tokens(model, tokenizer)
    return _merge_adapters(model, adapters)


def read_config(folder: Path, config: ModelLoadOptions) -> Any:
    """Read a model's config."""
    return AutoConfig.from_pretrained(folder, trust_remote_code=config.trust_remote_code)


def build_meta_model(model_config: Any, *, trust_remote_code: bool = False) -> PreTrainedModel:
    """Build a model on the meta device, without weights."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(copy.deepcopy(model_config), trust_remote_code=trust_remote_code)


def read_weights(
    folder: Path,
    model_config: Any,
    config: ModelLoadOptions,
    dtype: torch.dtype,
    attention: str | None = None,
    to: str | None = None,
) -> PreTrainedModel:
    """Load the weights onto the device `to`, by default the device of this process; quantize if configured.

    Raises:
        SourceError: Weights are missing or have different shapes than in the config.
    """
    transformers_logging.disable_progress_bar()
    target = to or device.device_type()
    options: dict[str, Any] = {"attn_implementation": attention} if attention else {}
    if config.train_from_scratch:
        return _random_model(model_config, config, dtype, options).to(target)
    options |= quantize.loading_options(model_config.to_dict())
    if config.quantization:
        meta_model = build_meta_model(model_config, trust_remote_code=config.trust_remote_code)
        options["quantization_config"] = quantize.build_quantization_config(config.quantization, dtype, meta_model)
    if target != "cpu" and (config.quantization or quantize.quantization_kind(model_config.to_dict())):
        options["device_map"] = {"": f"{target}:0"}
    model, loading_info = AutoModelForCausalLM.from_pretrained(
        folder,
        config=model_config,
        dtype=dtype,
        use_safetensors=None if config.allow_pickle else True,
        trust_remote_code=config.trust_remote_code,
        output_loading_info=True,
        **options,
    )
    _check_loading_info(folder, loading_info)
    quantize.apply_workarounds(model)
    return model if quantize.is_quantized(model) else model.to(target)


def _random_model(
    model_config: Any, config: ModelLoadOptions, dtype: torch.dtype, options: dict[str, Any]
) -> PreTrainedModel:
    """Build a model with initial weights; they are the same in each process and leave the global RNG unchanged."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(RANDOM_WEIGHTS_SEED)
        return AutoModelForCausalLM.from_config(
            model_config, dtype=dtype, trust_remote_code=config.trust_remote_code, **options
        )


def _check_loading_info(folder: Path, info: dict[str, Any]) -> None:
    """Reject incomplete weights: transformers initializes missing tensors randomly and only logs a warning."""
    missing, mismatched = sorted(info["missing_keys"]), sorted(str(key) for key in info["mismatched_keys"])
    if missing or mismatched:
        problem = "lacks" if missing else "has a different shape for"
        raise SourceError(
            f"model: {folder} {problem} {', '.join((missing or mismatched)[:3])}, expected by its config.json; they "
            "would be random numbers. Download the model again, or correct its config.json."
        )


def _scale_rope(model_config: Any, config: ModelLoadOptions) -> dict[str, str]:
    if not isinstance(config, LoadStepConfig) or config.rope_scaling is None:
        return {}
    return {"rope_scaling": rope.scale_rope(model_config, config.rope_scaling, config.max_length)}


def add_new_tokens(model: PreTrainedModel, tokenizer: Path) -> tuple[int, ...]:
    """Add embedding rows for the tokens that the recipe added, if any; return their ids."""
    new_ids = new_tokens.new_token_ids(tokenizer)
    if new_ids:
        num_old_tokens = len(load_tokenizer_from(tokenizer)) - len(new_ids)
        vocabulary.add_embedding_rows(model, new_ids, num_old_tokens=num_old_tokens)
    return tuple(new_ids)


def _adapters_to_merge(base_model: Manifest, config: LoadStepConfig) -> list[Path]:
    uses = zip(source.adapter_folders(base_model), config.uses, strict=True)
    return [path for path, use in uses if use == "merge"]


def _merge_adapters(model: PreTrainedModel, adapters: Iterable[Path]) -> PreTrainedModel:
    """Merge adapters in order; an unmergeable adapter, which can only be the last, stays attached."""
    for folder in adapters:
        family = families[adapter_method(folder)]
        attached = family.attach_saved(model, folder)
        model = family.merge(attached) if family.mergeable else attached
    return model
