"""Packed rows: what tells a model where examples begin, and the proof that they do not see each other."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from tuneline.errors import VerificationError
from tuneline.model.attention import choose
from tuneline.model.logit_distance import max_relative_diff

REMEDY = "Set tokenize.packing: false and train.per_device_train_batch_size: 1"
Batches = Sequence[Sequence[list[int]]]


def packed_inputs(lengths: list[int], device: torch.device | str = "cpu") -> dict[str, Any]:
    """Return what tells a model where the examples of a row begin: positions that restart, and the bounds."""
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
    """Compare examples packed together with each alone.

    Args:
        model: The model to be trained.
        batches: For each comparison, the ids of examples that share a row; without any, made-up ones are taken.
        tolerance: Difference up to which it is rounding.

    Returns:
        Largest difference of the logits, relative to their spread.

    Raises:
        ProofError: The difference is above the tolerance, so packed examples would see each other; or the architecture
            cannot compute a packed row.
    """
    training = model.training
    model.eval()
    try:
        difference = max(_packing_difference(model, batch) for batch in batches or [sample_examples(model)])
    finally:
        model.train(training)
    if not difference <= tolerance:
        raise VerificationError(
            f"Packed examples see each other in this architecture with load.attention: {_attention_kind(model)} (relative "
            f"difference {difference:.1e}, at most {tolerance:.0e} is rounding). {REMEDY}, or load.attention: auto, "
            "which tries every kind."
        )
    return difference


def set_isolating_attention(
    model: PreTrainedModel, batches: Batches = (), tolerance: float = 1e-2
) -> tuple[str, float]:
    """Give a model the first kind of attention in which packed examples do not see each other.

    Args:
        model: The model to be trained; its present kind is tried first, then `segment`, `sdpa` and `eager`.
        batches: As for `check_isolation`.
        tolerance: As for `check_isolation`.

    Returns:
        The kind, which the model now has, and its difference.

    Raises:
        ProofError: None of them is exact, or the model attends with `s2`, which nothing can replace.
    """
    present = _attention_kind(model)
    others = [] if present == "s2" else [kind for kind in ("segment", "sdpa", "eager") if kind != present]
    findings = []
    for kind in [present, *others]:
        why_not = "" if kind == present else _set_attention(model, kind)
        if why_not:
            findings.append(f"{kind} {why_not}.")
            continue
        try:
            _check_single_example(model, batches, tolerance)
            return kind, check_isolation(model, batches, tolerance)
        except VerificationError as error:
            findings.append(f"{kind}: {error}")
    model.set_attn_implementation(present)
    raise VerificationError(
        f"No kind of attention keeps packed examples apart here. {REMEDY}. Tried: {' '.join(findings)}"
    )


@torch.no_grad()
def _check_single_example(model: PreTrainedModel, batches: Batches, tolerance: float) -> None:
    """Hold `segment` against transformers' own attention on one example by itself.

    Packed and alone could agree with each other and both be wrong, where an architecture computes more than it says.

    Raises:
        ProofError: They differ.
    """
    if _attention_kind(model) != "segment" or not model._can_set_attn_implementation():
        return
    ids = torch.tensor([(batches or [sample_examples(model)])[0][0]], device=model.device)
    training = model.training
    ours = model.eval()(input_ids=ids, use_cache=False).logits.float()
    own = _set_standard_attention(model)
    theirs = model(input_ids=ids, use_cache=False).logits.float()
    model.set_attn_implementation("segment")
    model.train(training)
    difference = max_relative_diff(theirs, ours)
    if not difference <= tolerance:
        raise VerificationError(f"it computes something else than {own} (relative difference {difference:.1e})")


def _set_standard_attention(model: PreTrainedModel) -> str:
    """Give a model transformers' attention: torch's where every part of the model takes it."""
    try:
        model.set_attn_implementation("sdpa")
    except (ValueError, ImportError):
        model.set_attn_implementation("eager")
    return _attention_kind(model)


def _set_attention(model: PreTrainedModel, kind: str) -> str:
    """Give a model another kind of attention; says why it cannot have it, or nothing."""
    if why_not := choose.unsupported_reason(kind, type(model), model.config, model.dtype):
        return why_not
    if not model._can_set_attn_implementation():
        return "cannot replace the attention that this architecture was built with"
    model.set_attn_implementation(kind)
    return ""


def _attention_kind(model: PreTrainedModel) -> str:
    return str(model.config._attn_implementation)


def _packing_difference(model: PreTrainedModel, batch: Sequence[list[int]]) -> float:
    parts = [torch.tensor([ids], device=model.device) for ids in batch]
    alone = torch.cat([model(input_ids=part, use_cache=False).logits[0].float() for part in parts])
    inputs = packed_inputs([part.shape[1] for part in parts], model.device)
    try:
        packed = model(input_ids=torch.cat(parts, dim=1), **inputs).logits[0].float()
    except (VerificationError, torch.OutOfMemoryError):
        raise
    except (IndexError, RuntimeError, TypeError, ValueError) as error:
        raise VerificationError(f"This architecture cannot compute a packed row: {error} {REMEDY}.") from error
    return max_relative_diff(alone, packed)


def sample_examples(model: PreTrainedModel) -> list[list[int]]:
    """Return the ids of two short examples that any vocabulary has."""
    vocabulary = model.get_input_embeddings().weight.shape[0]
    ids = [(i * 7919 + 11) % vocabulary for i in range(16)]
    return [ids[:7], ids[7:]]
