"""Which parts of a model a method may change: linear layers, fused experts, decoder layers.

Works on structure, not on lists of architectures, and on models without weights (the meta device). peft's `all-linear`
takes routers, which return a tuple, and often misses experts held as one 3-D parameter; here neither happens, and
what was left out is said with its reason. Knows nothing of adapters.
"""

import inspect
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Literal

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from tuneline.errors import RecipeError, did_you_mean

QUANTIZED_LINEAR = re.compile(
    r"Linear4bit|Linear8bit|QuantLinear|WQLinear|QuantizedLinear|EetqLinear|HQQLinear|FbgemmFp8Linear"
)
"""Classes of layers that compute a linear map from other weights than a matrix of floats."""

ROUTER_NAME = re.compile(r"router|(^|_)gate$|gating", re.IGNORECASE)
"""Names of what sends tokens to experts; `gate_proj` is a plain layer of an MLP."""

INDEXER_NAME = re.compile(r"indexer", re.IGNORECASE)
"""Names of what picks the tokens that sparse attention reads."""

NON_TEXT_NAME = re.compile(r"vision|visual|image|audio|speech|patcher", re.IGNORECASE)
"""Names of what a text does not pass, or passes without gradient."""

MIXER_NAME = re.compile(r"attn|attention|mixer|mamba|recurrent|temporal|conv|delta|ssm|lstm", re.IGNORECASE)
FEED_FORWARD_NAME = re.compile(r"mlp|ffn|ff|feed_?forward|moe|experts|fc2", re.IGNORECASE)
COMMON_NAMES = {
    "attention": ("self_attn", "self_attention", "self_att", "attn", "attention", "mamba"),
    "mlp": ("mlp", "feed_forward", "ffn", "block_sparse_moe", "moe"),
}
"""How the parts of a layer are mostly called, and how they are told otherwise."""

IS_ROUTER = "it sends tokens to experts"
IS_INDEXER = "it picks the tokens that attention reads, and a choice passes no gradient"
OUTSIDE_DECODER = "it is not part of the text decoder"
SHARES_MATRIX = "several layers share its matrix, and each would merge its own update into it"
FLATTENED_EXPERTS = "its experts stand below each other in one matrix, which is read past its module"
BYPASSED = "its weight is read past the layer, so an adapter on it would not be seen"
NOT_LINEAR = "it returns something else than a linear map"
TIED_EMBEDDINGS = (
    "embedding and head share one matrix, and an adapter on it gives other logits once merged (5.9 apart when tried); "
    "use method.modules_to_save, or load.new_tokens to train new rows alone"
)


@dataclass(frozen=True)
class TargetLayers:
    """Targets of a method, by their full names."""

    modules: list[str] = field(default_factory=list)
    """Linear layers, and embeddings where they were named."""

    parameters: list[str] = field(default_factory=list)
    """Fused experts, for `LoraConfig(target_parameters=...)`."""

    left_out: dict[str, str] = field(default_factory=dict)
    """Linear layers and experts that were not taken, and why."""


def find_targets(model: nn.Module, wanted: Literal["all"] | list[str]) -> TargetLayers:
    """Find the layers that a method adapts.

    Args:
        model: Base model; it may be on the meta device.
        wanted: `all`, or names as peft matches them: a full name or the end of one, like `q_proj` or
            `experts.gate_up_proj`.

    Raises:
        RecipeError: A name matches nothing that can be adapted, or an embedding that is tied to the head.
    """
    if wanted == "all":
        found = _find_all(model)
        if not found.modules and not found.parameters:
            raise RecipeError("method.target_modules: this model has no linear layers. Take method full or freeze.")
        return found
    return _find_named(model, wanted)


def check_rank(model: nn.Module, found: TargetLayers, r: int, key: str) -> None:
    """Refuse a rank that a target cannot have.

    Args:
        model: Base model.
        found: What `find` returned for it.
        r: Rank.
        key: Key of the recipe that holds the rank, like `method.r`.

    Raises:
        RecipeError: The rank is above the smallest dimension of a target.
    """
    shapes = {name: _shape(model.get_submodule(name)) for name in found.modules}
    shapes |= {name: tuple(model.get_parameter(name).shape[-2:]) for name in found.parameters}
    if not shapes:
        return
    name, shape = min(shapes.items(), key=lambda item: min(item[1]))
    if r > min(shape):
        raise RecipeError(
            f"{key}: rank {r} is above the smallest dimension of {name} ({shape[0]} x {shape[1]}), so it would hold "
            f"more weights than the layer. Set at most {min(shape)}, or method.target_modules without that layer."
        )


def decoder_layers(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """Return the full name and the list of the blocks that the text passes one after the other.

    Raises:
        RecipeError: The model has no such list.
    """
    lists: dict[str, nn.ModuleList] = {}
    for name, module in _decoder(model):
        inside = any(name.startswith(f"{outer}.") for outer in lists)
        if not isinstance(module, nn.ModuleList) or inside or NON_TEXT_NAME.search(name):
            continue
        if any(_is_block(child) for child in module):
            lists[name] = module
    if not lists:
        raise RecipeError(f"method.type: {type(model).__name__} has no list of layers. Take another method.")
    return max(lists.items(), key=lambda item: len(item[1]))


def attention_and_mlp(layer: nn.Module) -> dict[str, str]:
    """Return the names, within a layer, of what mixes tokens (`attention`) and of what works on each (`mlp`).

    A part that a layer lacks, or that is a list of several, is not named. Where a part is wrapped together with its
    norm or its residual sum, the inner one is named.
    """
    blocks = {name: child for name, child in layer.named_children() if _is_block(child) or name == "fc2"}
    parts: dict[str, str] = {}
    for part, usual in COMMON_NAMES.items():
        names = [name for name in usual if name in blocks]
        names += [name for name, child in blocks.items() if _part(name, child) == part]
        if names:
            parts[part] = _innermost(names[0], blocks[names[0]], usual)
    return parts


def _part(name: str, child: nn.Module) -> str:
    """Tell which part a child of a layer is, by its name or else by its class."""
    for label in ([] if name == "mixer" else [name]) + [type(child).__name__]:
        for part, pattern in (("mlp", FEED_FORWARD_NAME), ("attention", MIXER_NAME)):
            if pattern.search(label):
                return part
    return ""


def _innermost(name: str, module: nn.Module, usual: tuple[str, ...]) -> str:
    inner = next((child for child in usual if isinstance(getattr(module, child, None), nn.Module)), None)
    return name if inner is None else _innermost(f"{name}.{inner}", getattr(module, inner), usual)


def bypassed_layers(model: nn.Module) -> list[str]:
    """Return the linear layers whose weights are computed with past the layer, so they must stay plain matrices.

    Quantization has to leave them alone: `llm_int8_skip_modules` of bitsandbytes, beside the head.
    """
    names = (name for name, module in model.named_modules() if _is_linear(module))
    return [name for name in names if _is_bypassed(model, name)]


def _find_all(model: nn.Module) -> TargetLayers:
    layers = _layers(model)
    inside = {name for name, _ in _decoder(model)}
    return TargetLayers(
        modules=[name for name, reason in layers.items() if not reason],
        parameters=[name for name in _experts(model) if name.rpartition(".")[0] in inside],
        left_out={name: reason for name, reason in layers.items() if reason}
        | dict.fromkeys(_experts(model, 2), FLATTENED_EXPERTS),
    )


def _find_named(model: nn.Module, wanted: list[str]) -> TargetLayers:
    found = TargetLayers()
    layers, experts, modules = _layers(model), _experts(model), dict(model.named_modules())
    for name in wanted:
        matches = [full for full in modules if full == name or full.endswith(f".{name}")]
        fused = [full for full in experts if full == name or full.endswith(f".{name}")]
        reasons = {full: _unadaptable_reason(model, modules[full], layers.get(full)) for full in matches}
        taken = [full for full, reason in reasons.items() if not reason]
        if TIED_EMBEDDINGS in reasons.values() or not (taken or fused):
            known = [*(full for full, reason in layers.items() if not reason), *experts]
            raise RecipeError(_no_target_message(model, name, reasons, known))
        found.modules.extend(full for full in taken if full not in found.modules)
        found.parameters.extend(full for full in fused if full not in found.parameters)
        found.left_out.update({full: reason for full, reason in reasons.items() if reason})
    return found


def _no_target_message(model: nn.Module, name: str, reasons: dict[str, str], known: list[str]) -> str:
    """Say why a name of `method.target_modules` cannot be taken."""
    ends = sorted({full.rpartition(".")[2] for full in known})
    if not reasons:
        return (
            f"method.target_modules: {name!r} is no layer of this {type(model).__name__}."
            f"{did_you_mean(name, [*ends, *known])} Known: {', '.join(ends)}."
        )
    full, reason = next((item for item in reasons.items() if item[1] == TIED_EMBEDDINGS), next(iter(reasons.items())))
    return f"method.target_modules: {full} cannot be adapted: {reason}. Known: {', '.join(ends)}."


def _unadaptable_reason(model: nn.Module, module: nn.Module, reason: str | None) -> str:
    """Return why a module that was asked for by name cannot be adapted, or an empty string.

    Args:
        model: Base model.
        module: What was named.
        reason: What `_layers` says of it; None for what is no linear layer of the decoder.
    """
    if module is _head(model) or module is _embedding(model):
        return TIED_EMBEDDINGS if _is_tied(model) else ""
    if reason is None:
        embeds = isinstance(module, nn.Embedding)
        return "" if embeds else f"it is a {type(module).__name__}, not a linear layer; name the layers in it"
    return "" if reason == IS_ROUTER else reason


def _layers(model: nn.Module) -> dict[str, str]:
    """Return the linear layers but the head, each with the reason not to adapt it, or an empty string."""
    modules = {name: module for name, module in model.named_modules() if _is_linear(module)}
    inside = {name for name, _ in _decoder(model)}
    matrices = Counter(
        id(next(module.parameters(), module))
        for _, module in model.named_modules(remove_duplicate=False)
        if _is_linear(module)
    )
    layers: dict[str, str] = {}
    for name, module in modules.items():
        if module is _head(model):
            continue
        if name not in inside or NON_TEXT_NAME.search(name):
            layers[name] = OUTSIDE_DECODER
        elif matrices[id(next(module.parameters(), module))] > 1:
            layers[name] = SHARES_MATRIX
        else:
            layers[name] = _exclusion_reason(model, name, module)
    return layers


def _exclusion_reason(model: nn.Module, name: str, module: nn.Module) -> str:
    """Return why a linear layer of the decoder should not be adapted, or an empty string."""
    if not _computes_linear_map(module):
        return NOT_LINEAR
    if _is_router(model, name):
        return IS_ROUTER
    if INDEXER_NAME.search(name):
        return IS_INDEXER
    return BYPASSED if _is_bypassed(model, name) else ""


def _is_linear(module: nn.Module) -> bool:
    """Tell whether a module is meant as a linear layer; a router that inherits from one is too."""
    return isinstance(module, nn.Linear | Conv1D) or bool(QUANTIZED_LINEAR.search(type(module).__name__))


def _computes_linear_map(module: nn.Module) -> bool:
    """Tell whether a layer gives one tensor of its outputs; some inherit from Linear and do other things."""
    if QUANTIZED_LINEAR.search(type(module).__name__) or type(module).forward in (nn.Linear.forward, Conv1D.forward):
        return True
    outputs, inputs = _shape(module)
    without_weights = {key: torch.empty_like(value, device="meta") for key, value in module.named_parameters()}
    try:
        result = torch.func.functional_call(module, without_weights, torch.empty(1, 3, inputs, device="meta"))
    except (RuntimeError, TypeError, ValueError):
        return False
    return isinstance(result, torch.Tensor) and result.shape == (1, 3, outputs)


def _is_bypassed(model: nn.Module, name: str) -> bool:
    """Tell whether the module around a layer computes with the layer's weight itself, as fused kernels of Mamba do."""
    parent, _, own = name.rpartition(".")
    kind = type(model.get_submodule(parent))
    return own in _weights_read_by(kind) or (own == "out_proj" and "mamba" in kind.__name__.lower())


@cache
def _weights_read_by(kind: type[nn.Module]) -> frozenset[str]:
    """Return the children of which the code of a class takes the `weight`, other than to ask for its type or place."""
    try:
        source = inspect.getsource(kind)
    except (OSError, TypeError):
        return frozenset()
    return frozenset(re.findall(r"self\.(\w+)\.weight\b(?!\[|\.(?:dtype|device|shape|size))", source))


def _is_router(model: nn.Module, name: str) -> bool:
    """Tell whether a linear layer chooses among experts that stand beside it, or beside the module that it is in."""
    path = name.split(".")
    for depth, part in enumerate(path):
        if ROUTER_NAME.search(part) and _holds_experts(model.get_submodule(".".join(path[:depth]))):
            return True
    return False


def _holds_experts(block: nn.Module) -> bool:
    return any("expert" in f"{name} {type(child).__name__}".lower() for name, child in block.named_children())


def _experts(model: nn.Module, ndim: int = 3) -> dict[str, nn.Parameter]:
    """Return matrices of experts that are held in one parameter, by full name."""
    fused: dict[str, nn.Parameter] = {}
    for name, module in model.named_modules():
        label = f"{name.rpartition('.')[2]} {type(module).__name__}".lower()
        if "expert" not in label or _is_linear(module):
            continue
        for own, parameter in module.named_parameters(recurse=False):
            if parameter.ndim == ndim and not re.search("bias|scale", own):
                fused[f"{name}.{own}"] = parameter
    return fused


def _decoder(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules of the text decoder by full name; all of them where the model names no decoder with layers."""
    decoder = model.get_decoder() if isinstance(model, PreTrainedModel) else None
    if decoder is None or not any(isinstance(module, nn.ModuleList) for module in decoder.modules()):
        decoder = model
    prefix = next(name for name, module in model.named_modules() if module is decoder)
    for name, module in decoder.named_modules():
        yield ".".join(filter(None, [prefix, name])), module


def _is_block(module: nn.Module) -> bool:
    """Tell whether a module computes with matrices below it; a norm, a single layer and a list of modules do not."""
    if isinstance(module, nn.ModuleList | nn.ModuleDict | nn.Embedding) or _is_linear(module):
        return False
    return any(parameter.ndim > 1 for parameter in module.parameters())


def _head(model: nn.Module) -> nn.Module | None:
    return model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None


def _embedding(model: nn.Module) -> nn.Module | None:
    return model.get_input_embeddings() if isinstance(model, PreTrainedModel) else None


def _is_tied(model: nn.Module) -> bool:
    """Tell whether embedding and head share a matrix; on the meta device only the configuration says so."""
    head, embedding = _head(model), _embedding(model)
    if head is None or embedding is None:
        return False
    config = getattr(model, "config", None)
    by_config = getattr(config.get_text_config() if config else None, "tie_word_embeddings", False)
    return bool(by_config) or getattr(head, "weight", None) is getattr(embedding, "weight", object())


def _shape(module: nn.Module) -> tuple[int, int]:
    """Return outputs and inputs of a layer; packed weights do not show them."""
    if isinstance(module, Conv1D):
        return int(module.nf), int(module.nx)
    if isinstance(module, nn.Embedding):
        return module.num_embeddings, module.embedding_dim
    return int(module.out_features), int(module.in_features)
