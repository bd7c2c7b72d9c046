"""Load a base model for training, and any model for answering.

The way of a base model: config, positions, precision, attention, quantization, weights, vocabulary, adapters that were
there before, patches. What was chosen by itself is told in words.
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
from tuneline.data.tokenizer import new_tokens as words
from tuneline.data.tokenizer.loader import load_tokenizer_from
from tuneline.errors import SourceError
from tuneline.identity import Manifest
from tuneline.model import adapter_bundle, device, patches, precision, quantize, rope, source, vocabulary
from tuneline.model.attention import choose, shifted
from tuneline.model.methods import adapter_method, families
from tuneline.model.precision import Precision

RANDOM_WEIGHTS_SEED = 0
"""Of random weights: who trains and who compares with the start must have the same ones."""


@dataclass(frozen=True)
class LoadedModel:
    """A base model in memory, and how it came to be so."""

    model: PreTrainedModel
    precision: Precision
    attention: str
    """As transformers calls it."""

    new_ids: tuple[int, ...] = ()
    """Tokens that the recipe added; their rows are noise until they are trained."""

    decisions: dict[str, str] = field(default_factory=dict)
    """What was chosen, and why, in words."""


def load_for_training(
    base_model: Manifest, tokenizer: Manifest, config: LoadStepConfig, *, trains_all: bool, packed: bool
) -> LoadedModel:
    """Load a base model for training.

    Args:
        base_model: Weights, and behind them the adapters that the recipe attaches.
        tokenizer: Says which tokens are new.
        config: How to hold it.
        trains_all: Every weight is trained.
        packed: Several examples share a row.

    Raises:
        RecipeError: This machine or this model cannot do what the recipe asks.
        SourceError: The weights do not fit the config.
    """
    folder = source.manifest_folder(base_model)
    about = read_config(folder, config)
    held = precision.choose_precision(config.dtype, trains_all=trains_all, model_dtype=about.dtype)
    shifts = config.s2_group_size_ratio is not None
    computed = held.autocast or held.weights
    kind, why = choose.choose_attention(config.attention, config=about, dtype=computed, packed=packed, s2=shifts)
    decisions = {"dtype": f"{held.weights}: {held.reason}", "attention": f"{kind}: {why}"}
    decisions |= _scale_rope(about, config)
    model = read_weights(folder, about, config, held.weights, kind)
    if quantize.is_quantized(model):
        quantize.prepare_for_training(model)
    new_ids = add_new_tokens(model, source.manifest_folder(tokenizer))
    model = _merge_adapters(model, _adapters_to_merge(base_model, config))
    if config.s2_group_size_ratio is not None:
        decisions["s2"] = shifted.enable_shifted_attention(model, config.s2_group_size_ratio, config.max_length)
    decisions |= patches.apply_patches(model, config)
    return LoadedModel(model, held, kind, new_ids, decisions)


def load_for_merge(
    base_model: Manifest, tokenizer: Manifest, config: LoadStepConfig, kind: str, to: str | None = None
) -> PreTrainedModel:
    """Load a base model as it was trained on, in full precision where it is not quantized.

    Args:
        base_model: Weights, and behind them the adapters that the recipe attaches.
        tokenizer: Says which tokens are new.
        config: How it was held in training.
        kind: Attention, as transformers calls it.
        to: Device; the one that there is, where it is not given.
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
    """Build what `load_for_merge` loads, its parameters on the meta device and its buffers computed.

    Returns:
        None where the files alone do not make the model: quantized, grown by tokens, random, with code of its own, or
        with adapters folded in.
    """
    folder = source.manifest_folder(base_model)
    about = read_config(folder, config)
    made = config.quantization or config.train_from_scratch or config.trust_remote_code
    grown = words.new_token_ids(source.manifest_folder(tokenizer)) or _adapters_to_merge(base_model, config)
    if made or grown or quantize.quantization_kind(about.to_dict()):
        return None
    _scale_rope(about, config)
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(about, dtype=torch.float32, attn_implementation=kind)
    model.tie_weights()
    if model.can_generate() and (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    return model.eval()


def load_for_inference(
    base_model: Manifest, tokenizer: Manifest, config: ModelLoadOptions, dtype: torch.dtype = torch.float32
) -> PreTrainedModel:
    """Load a base model, with the adapters that it came with folded in, for the tokenizer that asks it.

    With full attention and in a type of its own, whatever it is trained in: the fair opponent of what is made of it.
    """
    folders = source.manifest_folder(base_model), source.manifest_folder(tokenizer)
    return _load_assembled(*folders, source.adapter_folders(base_model), config.plain(), dtype=dtype)


def load_model(
    folder: Path,
    dtype: torch.dtype = torch.float32,
    attention: str | None = None,
    allowed: ModelLoadOptions | None = None,
) -> PreTrainedModel:
    """Load a model directory onto the device that there is: a whole model, or an adapter with its base beside it.

    Args:
        folder: As `save_pretrained` or `tuneline.model.merge` leaves it.
        dtype: Type of the weights.
        attention: As transformers calls it; its own choice where it is not given.
        allowed: What the recipe allows: pickles, the model's own code. Nothing of it where it is not given.
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
    """Read a base model with its positions, rows for new tokens, and adapters folded in."""
    about = read_config(folder, config)
    _scale_rope(about, config)
    model = read_weights(folder, about, config, dtype, attention, to)
    add_new_tokens(model, tokenizer)
    return _merge_adapters(model, adapters)


def read_config(folder: Path, config: ModelLoadOptions) -> Any:
    """Read a model's config; without weights."""
    return AutoConfig.from_pretrained(folder, trust_remote_code=config.trust_remote_code)


def build_meta_model(about: Any, *, trust_remote_code: bool = False) -> PreTrainedModel:
    """Build a model without weights, on the meta device."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(copy.deepcopy(about), trust_remote_code=trust_remote_code)


def read_weights(
    folder: Path,
    about: Any,
    config: ModelLoadOptions,
    dtype: torch.dtype,
    attention: str | None = None,
    to: str | None = None,
) -> PreTrainedModel:
    """Read the weights onto the device `to`, or the one that there is, quantized where the recipe says so.

    Raises:
        SourceError: Weights are missing, or have another shape than the config says.
    """
    transformers_logging.disable_progress_bar()
    place = to or device.device_type()
    options: dict[str, Any] = {"attn_implementation": attention} if attention else {}
    if config.train_from_scratch:
        return _random_model(about, config, dtype, options).to(place)
    options |= quantize.loading_options(about.to_dict())
    if config.quantization:
        shape = build_meta_model(about, trust_remote_code=config.trust_remote_code)
        options["quantization_config"] = quantize.build_quantization_config(config.quantization, dtype, shape)
    if place != "cpu" and (config.quantization or quantize.quantization_kind(about.to_dict())):
        options["device_map"] = {"": f"{place}:0"}
    model, told = AutoModelForCausalLM.from_pretrained(
        folder,
        config=about,
        dtype=dtype,
        use_safetensors=None if config.allow_pickle else True,
        trust_remote_code=config.trust_remote_code,
        output_loading_info=True,
        **options,
    )
    _check_loading_info(folder, told)
    quantize.apply_workarounds(model)
    return model if quantize.is_quantized(model) else model.to(place)


def _random_model(about: Any, config: ModelLoadOptions, dtype: torch.dtype, options: dict[str, Any]) -> PreTrainedModel:
    """Make the weights that a config begins with; the same ones in each process, whatever was drawn before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(RANDOM_WEIGHTS_SEED)
        return AutoModelForCausalLM.from_config(
            about, dtype=dtype, trust_remote_code=config.trust_remote_code, **options
        )


def _check_loading_info(folder: Path, told: dict[str, Any]) -> None:
    """Transformers fills what is missing with random numbers and says so in a log only."""
    missing, mismatched = sorted(told["missing_keys"]), sorted(str(key) for key in told["mismatched_keys"])
    if missing or mismatched:
        what = "lacks" if missing else "has another shape for"
        raise SourceError(
            f"model: {folder} {what} {', '.join((missing or mismatched)[:3])}, which its config.json speaks of; they "
            "would be random numbers. Fetch the model again, or correct its config.json."
        )


def _scale_rope(about: Any, config: ModelLoadOptions) -> dict[str, str]:
    if not isinstance(config, LoadStepConfig) or config.rope_scaling is None:
        return {}
    return {"rope_scaling": rope.scale_rope(about, config.rope_scaling, config.max_length)}


def add_new_tokens(model: PreTrainedModel, tokenizer: Path) -> tuple[int, ...]:
    """Make room for the tokens that the recipe added; nothing happens where it added none."""
    new = words.new_token_ids(tokenizer)
    if new:
        vocabulary.add_embedding_rows(model, new, num_old_tokens=len(load_tokenizer_from(tokenizer)) - len(new))
    return tuple(new)


def _adapters_to_merge(base_model: Manifest, config: LoadStepConfig) -> list[Path]:
    uses = zip(source.adapter_folders(base_model), config.uses, strict=True)
    return [path for path, use in uses if use == "merge"]


def _merge_adapters(model: PreTrainedModel, adapters: Iterable[Path]) -> PreTrainedModel:
    """Merge adapters in order; one that has no merged form, which can only be the last, stays attached."""
    for folder in adapters:
        family = families[adapter_method(folder)]
        attached = family.attach_saved(model, folder)
        model = family.merge(attached) if family.mergeable else attached
    return model
