"""Packed rows: model inputs with example bounds, and the check that examples do not attend to each other."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from tuneline.errors import VerificationError
from tuneline.model.attention import implementation
from tuneline.model.logit_distance import max_relative_diff

REMEDY = "Set tokenize.packing: false and train.per_device_train_batch_size: 1"
Batches = Sequence[Sequence[list[int]]]


def packed_inputs(lengths: list[int], device: torch.device | str = "cpu") -> dict[str, Any]:
    """Return the model inputs of a packed row: positions that restart at each example, and example bounds."""
    bounds = torch.tensor([0, *lengths], dtype=torch.int32, device=device).cumsum(0, dtype=torch.int32)
    positions = torch.cat([torch.arange(n, device=device) for n in lengths])[None]
    longest = max(lengths)
    return {
        "position_ids": positions,
        "cu_seq_lens_q": bounds,
        "cu_seq_lens_k": bounds,
        "max_length_q": longest,
        "max_length_k": longest,
        "use_cache": False,
    }


@torch.no_grad()
def check_isolation(model: PreTrainedModel, batches: Batches = (), tolerance: float = 1e-2) -> float:
    """Compare the logits of packed examples with those of each example alone.

    Args:
        model: The model to be trained.
        batches: For each comparison, the ids of examples that share a row; by default synthetic ones.
        tolerance: Largest relative difference that counts as rounding.

    Returns:
        The largest relative difference of the logits.

    Raises:
        VerificationError: The difference exceeds the tolerance, so packed examples attend to each other; or the
            architecture cannot compute a packed row.
    """
    training = model.training
    model.eval()
    try:
        difference = max(_packing_difference(model, batch) for batch in batches or [sample_examples(model)])
    finally:
        model.train(training)
    if not difference <= tolerance:
        raise VerificationError(
            "Packed examples attend to each other in this architecture with load.attention: "
            f"{_attention_kind(model)} (relative difference {difference:.1e}, tolerance {tolerance:.0e}). {REMEDY}, "
            "or load.attention: auto, which tries every implementation."
        )
    return difference


def set_isolating_attention(
    model: PreTrainedModel, batches: Batches = (), tolerance: float = 1e-2
) -> tuple[str, float]:
    """Set the first attention implementation in which packed examples are isolated.

    Args:
        model: The model to be trained; its current implementation is tried first, then `segment`, `sdpa` and `eager`.
        batches: As for `check_isolation`.
        tolerance: As for `check_isolation`.

    Returns:
        The implementation that is now set, and its relative difference.

    Raises:
        VerificationError: No implementation isolates the examples; `s2` is never replaced.
    """
    current = _attention_kind(model)
    others = [] if current == "s2" else [kind for kind in ("segment", "sdpa", "eager") if kind != current]
    failures = []
    for kind in [current, *others]:
        reason = "" if kind == current else _set_attention(model, kind)
        if reason:
            failures.append(f"{kind} {reason}.")
            continue
        try:
            _check_single_example(model, batches, tolerance)
            return kind, check_isolation(model, batches, tolerance)
        except VerificationError as error:
            failures.append(f"{kind}: {error}")
    model.set_attn_implementation(current)
    raise VerificationError(
        f"No attention implementation isolates packed examples here. {REMEDY}. Tried: {' '.join(failures)}"
    )


@torch.no_grad()
def _check_single_example(model: PreTrainedModel, batches: Batches, tolerance: float) -> None:
    """Compare `segment` with the standard attention of transformers on a single example.

    Packed and single examples could agree with each other and both be wrong, if an architecture computes more than its
    attention interface shows.

    Raises:
        VerificationError: They differ.
    """
    if _attention_kind(model) != "segment" or not model._can_set_attn_implementation():
        return
    ids = torch.tensor([(batches or [sample_examples(model)])[0][0]], device=model.device)
    training = model.training
    segment_logits = model.eval()(input_ids=ids, use_cache=False).logits.float()
    standard = _set_standard_attention(model)
    standard_logits = model(input_ids=ids, use_cache=False).logits.float()
    model.set_attn_implementation("segment")
    model.train(training)
    difference = max_relative_diff(standard_logits, segment_logits)
    if not difference <= tolerance:
        raise VerificationError(f"its output differs from {standard} (relative difference {difference:.1e})")


def _set_standard_attention(model: PreTrainedModel) -> str:
    """Set the standard attention of transformers: `sdpa` if every part of the model supports it, else `eager`."""
    try:
        model.set_attn_implementation("sdpa")
    except (ValueError, ImportError):
        model.set_attn_implementation("eager")
    return _attention_kind(model)


def _set_attention(model: PreTrainedModel, kind: str) -> str:
    """Set an attention implementation; returns why it is not supported, or an empty string."""
    if reason := implementation.unsupported_reason(kind, type(model), model.config, model.dtype):
        return reason
    if not model._can_set_attn_implementation():
        return "is not supported: this architecture's attention cannot be replaced"
    model.set_attn_implementation(kind)
    return ""


def _attention_kind(model: PreTrainedModel) -> str:
    return str(model.config._attn_implementation)


def _packing_difference(model: PreTrainedModel, batch: Sequence[list[int]]) -> float:
    examples = [torch.tensor([ids], device=model.device) for ids in batch]
    separate = torch.cat([model(input_ids=example, use_cache=False).logits[0].float() for example in examples])
    inputs = packed_inputs([example.shape[1] for example in examples], model.device)
    try:
        packed = model(input_ids=torch.cat(examples, dim=1), **inputs).logits[0].float()
    except (VerificationError, torch.OutOfMemoryError):
        raise
    except (IndexError, RuntimeError, TypeError, ValueError) as error:
        raise VerificationError(f"This architecture cannot compute a packed row: {error} {REMEDY}.") from error
    return max_relative_diff(separate, packed)


def sample_examples(model: PreTrainedModel) -> list[list[int]]:
    """Return the token ids of two short synthetic examples that are valid for any vocabulary."""
    vocabulary = model.get_input_embeddings().weight.shape[0]
    ids = [(i * 7919 + 11) % vocabulary for i in range(16)]
    return [ids[:7], ids[7:]]
