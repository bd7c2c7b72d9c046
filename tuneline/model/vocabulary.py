"""Embedding rows for new tokens: the mean of the old rows plus noise, so that they are plausible and distinct.

transformers draws new rows from a normal distribution with the covariance of the old rows times 1e-9: they agree to
five digits, and the covariance is expensive. In a padded vocabulary, the row of a new token exists already and is
initialized again. The noise has a standard deviation of 1 / sqrt(width).
"""

from collections.abc import Sequence

import torch
from peft.utils.integrations import gather_params_ctx
from torch import nn
from transformers import PreTrainedModel

from tuneline.errors import RecipeError
from tuneline.model.device import PEAK_MEMORY_DEVICES

PAD_TO_MULTIPLE_OF = 64
"""An extended vocabulary is padded to a multiple of this, for efficient matrix products."""


def add_embedding_rows(
    model: PreTrainedModel, new_ids: Sequence[int], num_old_tokens: int, seed: int = 0
) -> tuple[int, ...]:
    """Add the rows of new tokens to input and output embeddings.

    The noise depends only on `seed`, the ids and the shapes, so every load of the base gives the same rows.

    Args:
        model: Base model; may be quantized or on the meta device.
        new_ids: Ids of the new tokens in the tokenizer.
        num_old_tokens: Number of tokens before; later rows are padding.
        seed: Seed of the noise.

    Returns:
        The ids in ascending order.

    Raises:
        RecipeError: The embeddings are quantized, so rows cannot be added.
    """
    ids = tuple(sorted(new_ids))
    if not ids:
        return ids
    _check_not_quantized(model)
    num_rows = _num_rows(model)
    if max(ids) >= num_rows:
        _resize(model, max(ids) + 1)
    generator = torch.Generator().manual_seed(seed)
    for weight in _weights(model):
        _initialize_rows(weight, ids, range(num_rows, _num_rows(model)), num_old_tokens, generator)
    _initialize_bias(model, ids, range(num_rows, _num_rows(model)), num_old_tokens)
    return ids


def _num_rows(model: PreTrainedModel) -> int:
    return int(model.get_input_embeddings().weight.shape[0])


def _check_not_quantized(model: PreTrainedModel) -> None:
    for module in (model.get_input_embeddings(), model.get_output_embeddings()):
        if module is not None and not (isinstance(module, nn.Embedding | nn.Linear) and _is_plain(module.weight)):
            raise RecipeError(
                f"load.new_tokens: the embeddings of this model are quantized ({type(module).__name__}), so rows "
                "cannot be added. Remove new_tokens and new_special_tokens, or use the model without quantization."
            )


def _is_plain(weight: torch.Tensor) -> bool:
    return weight.is_floating_point() and type(weight) in (torch.Tensor, nn.Parameter)


def _resize(model: PreTrainedModel, num_tokens: int) -> None:
    """Add rows, which are overwritten later; the global random state does not change."""
    device = model.get_input_embeddings().weight.device
    with torch.random.fork_rng(devices=[device] if device.type in PEAK_MEMORY_DEVICES else []):
        model.resize_token_embeddings(num_tokens, pad_to_multiple_of=PAD_TO_MULTIPLE_OF, mean_resizing=False)


def _weights(model: PreTrainedModel) -> list[nn.Parameter]:
    """Return the input embedding and, unless tied, the output embedding."""
    inputs, outputs = model.get_input_embeddings(), model.get_output_embeddings()
    tied = outputs is None or outputs.weight is inputs.weight
    return [inputs.weight] if tied else [inputs.weight, outputs.weight]


@torch.no_grad()
def _initialize_rows(
    weight: nn.Parameter, ids: tuple[int, ...], added: range, num_old: int, generator: torch.Generator
) -> None:
    """Set the rows of `ids` to mean plus noise, and the padding rows in `added` to the mean."""
    if weight.is_meta:
        return
    with gather_params_ctx(weight, modifier_rank=0):
        mean = weight[:num_old].float().mean(0)
        noise = torch.randn(len(ids), weight.shape[1], generator=generator) / weight.shape[1] ** 0.5
        weight[list(added)] = mean.to(weight.dtype)
        weight[list(ids)] = (mean + noise.to(weight.device)).to(weight.dtype)


@torch.no_grad()
def _initialize_bias(model: PreTrainedModel, ids: tuple[int, ...], added: range, num_old: int) -> None:
    bias = getattr(model.get_output_embeddings(), "bias", None)
    if bias is not None and not bias.is_meta:
        bias[[*added, *ids]] = bias[:num_old].float().mean().to(bias.dtype)
