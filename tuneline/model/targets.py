"""Find the parts of a model that a method can adapt: linear layers, fused experts, decoder layers.

It inspects the structure of the model instead of listing architectures, and works on the meta device. `all-linear` of
`peft` includes routers, which return a tuple, and often misses experts stored in one 3-D parameter. Here both are
handled, and every excluded layer is reported with the reason.
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
"""Class names of linear layers with quantized weights."""

ROUTER_NAME = re.compile(r"router|(^|_)gate$|gating", re.IGNORECASE)
"""Names of expert routers; `gate_proj` is a regular MLP layer."""

INDEXER_NAME = re.compile(r"indexer", re.IGNORECASE)
"""Names of modules that select the tokens of sparse attention."""

NON_TEXT_NAME = re.compile(r"vision|visual|image|audio|speech|patcher", re.IGNORECASE)
"""Names of modules that text does not pass, or passes without gradient."""

MIXER_NAME = re.compile(r"attn|attention|mixer|mamba|recurrent|temporal|conv|delta|ssm|lstm", re.IGNORECASE)
FEED_FORWARD_NAME = re.compile(r"mlp|ffn|ff|feed_?forward|moe|experts|fc2", re.IGNORECASE)
COMMON_NAMES = {
    "attention": ("self_attn", "self_attention", "self_att", "attn", "attention", "mamba"),
    "mlp": ("mlp", "feed_forward", "ffn", "block_sparse_moe", "moe"),
}
"""Common names of the parts of a layer; others are recognized by the patterns above."""

IS_ROUTER = "it routes tokens to experts"
IS_INDEXER = "it selects the tokens of sparse attention, and a selection has no gradient"
OUTSIDE_DECODER = "it is not part of the text decoder"
SHARES_MATRIX = "several layers share its matrix, and each would merge its own update into it"
FLATTENED_EXPERTS = "its experts are stacked in one matrix, which is used without calling the module"
BYPASSED = "its weight is used without calling the layer, so an adapter on it would have no effect"
NOT_LINEAR = "its output is not a linear map of its input"
TIED_EMBEDDINGS = (
    "embedding and head share one matrix, and merging an adapter on it changes the logits (by 5.9 in a test); use "
    "method.modules_to_save, or load.new_tokens to train new rows only"
)


@dataclass(frozen=True)
class TargetLayers:
    """Layers that a method adapts, by their full names."""

    modules: list[str] = field(default_factory=list)
    """Linear layers, and embeddings if the recipe names them."""

    parameters: list[str] = field(default_factory=list)
    """Fused experts, for `LoraConfig(target_parameters=...)`."""

    excluded: dict[str, str] = field(default_factory=dict)
    """Excluded linear layers and experts -> reason."""


def find_targets(model: nn.Module, target_modules: Literal["all"] | list[str]) -> TargetLayers:
    """Find the layers that a method adapts.

    Args:
        model: Base model; may be on the meta device.
        target_modules: `all`, or names as `peft` matches them: a full name or a suffix, like `q_proj` or
            `experts.gate_up_proj`.

    Raises:
        RecipeError: A name matches nothing that can be adapted, or an embedding that is tied to the head.
    """
    if target_modules == "all":
        layers = _find_all(model)
        if not layers.modules and not layers.parameters:
            raise RecipeError(
                "method.target_modules: this model has no linear layers. Set method.type: full or freeze."
            )
        return layers
    return _find_named(model, target_modules)


def check_rank(model: nn.Module, layers: TargetLayers, r: int, key: str) -> None:
    """Check that the rank does not exceed the dimensions of the targets.

    Args:
        model: Base model.
        layers: Result of `find_targets`.
        r: Rank.
        key: Recipe key of the rank, like `method.r`.

    Raises:
        RecipeError: The rank is above the smallest dimension of a target.
    """
    shapes = {name: _shape(model.get_submodule(name)) for name in layers.modules}
    shapes |= {name: tuple(model.get_parameter(name).shape[-2:]) for name in layers.parameters}
    if not shapes:
        return
    name, shape = min(shapes.items(), key=lambda item: min(item[1]))
    if r > min(shape):
        raise RecipeError(
            f"{key}: rank {r} is above the smallest dimension of {name} ({shape[0]} x {shape[1]}), so the adapter has "
            f"more weights than the layer. Set at most {min(shape)}, or method.target_modules without that layer."
        )


def decoder_layers(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """Return the full name and the list of the decoder layers.

    Raises:
        RecipeError: The model has no list of layers.
    """
    lists: dict[str, nn.ModuleList] = {}
    for name, module in _decoder(model):
        inside = any(name.startswith(f"{outer}.") for outer in lists)
        if not isinstance(module, nn.ModuleList) or inside or NON_TEXT_NAME.search(name):
            continue
        if any(_is_block(child) for child in module):
            lists[name] = module
    if not lists:
        raise RecipeError(f"method.type: {type(model).__name__} has no list of layers. Use another method.")
    return max(lists.items(), key=lambda item: len(item[1]))


def attention_and_mlp(layer: nn.Module) -> dict[str, str]:
    """Return the names, within a layer, of the part that mixes tokens (`attention`) and the feed-forward part (`mlp`).

    A part that is missing, or is a list of several, is omitted. If a part is wrapped together with its norm or residual
    sum, the inner module is returned.
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
    """Return which part of a layer a child is, by its name or else by its class."""
    for label in ([] if name == "mixer" else [name]) + [type(child).__name__]:
        for part, pattern in (("mlp", FEED_FORWARD_NAME), ("attention", MIXER_NAME)):
            if pattern.search(label):
                return part
    return ""


def _innermost(name: str, module: nn.Module, usual: tuple[str, ...]) -> str:
    inner = next((child for child in usual if isinstance(getattr(module, child, None), nn.Module)), None)
    return name if inner is None else _innermost(f"{name}.{inner}", getattr(module, inner), usual)


def bypassed_layers(model: nn.Module) -> list[str]:
    """Return the linear layers whose weights are used without calling the layer, so they must stay plain matrices.

    They must not be quantized: `llm_int8_skip_modules` of bitsandbytes, together with the head.
    """
    names = (name for name, module in model.named_modules() if _is_linear(module))
    return [name for name in names if _is_bypassed(model, name)]


def _find_all(model: nn.Module) -> TargetLayers:
    layers = _layers(model)
    inside = {name for name, _ in _decoder(model)}
    return TargetLayers(
        modules=[name for name, reason in layers.items() if not reason],
        parameters=[name for name in _experts(model) if name.rpartition(".")[0] in inside],
        excluded={name: reason for name, reason in layers.items() if reason}
        | dict.fromkeys(_experts(model, 2), FLATTENED_EXPERTS),
    )


def _find_named(model: nn.Module, target_modules: list[str]) -> TargetLayers:
    result = TargetLayers()
    layers, experts, modules = _layers(model), _experts(model), dict(model.named_modules())
    for name in target_modules:
        matches = [full for full in modules if full == name or full.endswith(f".{name}")]
        fused = [full for full in experts if full == name or full.endswith(f".{name}")]
        reasons = {full: _unadaptable_reason(model, modules[full], layers.get(full)) for full in matches}
        adaptable = [full for full, reason in reasons.items() if not reason]
        if TIED_EMBEDDINGS in reasons.values() or not (adaptable or fused):
            candidates = [*(full for full, reason in layers.items() if not reason), *experts]
            raise RecipeError(_no_target_message(model, name, reasons, candidates))
        result.modules.extend(full for full in adaptable if full not in result.modules)
        result.parameters.extend(full for full in fused if full not in result.parameters)
        result.excluded.update({full: reason for full, reason in reasons.items() if reason})
    return result


def _no_target_message(model: nn.Module, name: str, reasons: dict[str, str], candidates: list[str]) -> str:
    """Return the error message for a name in `method.target_modules` that cannot be adapted."""
    suffixes = sorted({full.rpartition(".")[2] for full in candidates})
    if not reasons:
        return (
            f"method.target_modules: {name!r} is not a layer of this {type(model).__name__}."
            f"{did_you_mean(name, [*suffixes, *candidates])} Known: {', '.join(suffixes)}."
        )
    full, reason = next((item for item in reasons.items() if item[1] == TIED_EMBEDDINGS), next(iter(reasons.items())))
    return f"method.target_modules: {full} cannot be adapted: {reason}. Known: {', '.join(suffixes)}."


def _unadaptable_reason(model: nn.Module, module: nn.Module, reason: str | None) -> str:
    """Return why a module that the recipe names cannot be adapted, or an empty string.

    Args:
        model: Base model.
        module: The named module.
        reason: Exclusion reason from `_layers`; None if the module is not a linear layer of the decoder.
    """
    if module is _head(model) or module is _embedding(model):
        return TIED_EMBEDDINGS if _is_tied(model) else ""
    if reason is None:
        is_embedding = isinstance(module, nn.Embedding)
        return "" if is_embedding else f"it is a {type(module).__name__}, not a linear layer; name the layers in it"
    return "" if reason == IS_ROUTER else reason


def _layers(model: nn.Module) -> dict[str, str]:
    """Return all linear layers except the head, with the reason for excluding each, or an empty string."""
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
    """Return the reason for excluding a linear layer of the decoder, or an empty string."""
    if not _computes_linear_map(module):
        return NOT_LINEAR
    if _is_router(model, name):
        return IS_ROUTER
    if INDEXER_NAME.search(name):
        return IS_INDEXER
    return BYPASSED if _is_bypassed(model, name) else ""


def _is_linear(module: nn.Module) -> bool:
    """Return whether a module is a linear layer, including routers that inherit from one."""
    return isinstance(module, nn.Linear | Conv1D) or bool(QUANTIZED_LINEAR.search(type(module).__name__))


def _computes_linear_map(module: nn.Module) -> bool:
    """Return whether a layer returns one tensor of the expected shape; some subclasses of Linear do not."""
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
    """Return whether the parent module computes with the layer's weight itself, like the fused kernels of Mamba."""
    parent, _, child = name.rpartition(".")
    parent_class = type(model.get_submodule(parent))
    is_mamba_output = child == "out_proj" and "mamba" in parent_class.__name__.lower()
    return child in _weights_read_by(parent_class) or is_mamba_output


@cache
def _weights_read_by(module_class: type[nn.Module]) -> frozenset[str]:
    """Return the children whose `weight` is used in the source of a class, except for its dtype, device or shape."""
    try:
        source = inspect.getsource(module_class)
    except (OSError, TypeError):
        return frozenset()
    return frozenset(re.findall(r"self\.(\w+)\.weight\b(?!\[|\.(?:dtype|device|shape|size))", source))


def _is_router(model: nn.Module, name: str) -> bool:
    """Return whether a linear layer is a router: it, or a module around it, has experts as siblings."""
    path = name.split(".")
    for depth, part in enumerate(path):
        if ROUTER_NAME.search(part) and _holds_experts(model.get_submodule(".".join(path[:depth]))):
            return True
    return False


def _holds_experts(block: nn.Module) -> bool:
    return any("expert" in f"{name} {type(child).__name__}".lower() for name, child in block.named_children())


def _experts(model: nn.Module, ndim: int = 3) -> dict[str, nn.Parameter]:
    """Return parameters that contain the matrices of all experts, by full name."""
    fused: dict[str, nn.Parameter] = {}
    for name, module in model.named_modules():
        label = f"{name.rpartition('.')[2]} {type(module).__name__}".lower()
        if "expert" not in label or _is_linear(module):
            continue
        for parameter_name, parameter in module.named_parameters(recurse=False):
            if parameter.ndim == ndim and not re.search("bias|scale", parameter_name):
                fused[f"{name}.{parameter_name}"] = parameter
    return fused


def _decoder(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules of the text decoder by full name; all modules if the model declares no decoder with layers."""
    decoder = model.get_decoder() if isinstance(model, PreTrainedModel) else None
    if decoder is None or not any(isinstance(module, nn.ModuleList) for module in decoder.modules()):
        decoder = model
    prefix = next(name for name, module in model.named_modules() if module is decoder)
    for name, module in decoder.named_modules():
        yield ".".join(filter(None, [prefix, name])), module


def _is_block(module: nn.Module) -> bool:
    """Return whether a module is a block of several layers, not a norm, a single layer or a list of modules."""
    if isinstance(module, nn.ModuleList | nn.ModuleDict | nn.Embedding) or _is_linear(module):
        return False
    return any(parameter.ndim > 1 for parameter in module.parameters())


def _head(model: nn.Module) -> nn.Module | None:
    return model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None


def _embedding(model: nn.Module) -> nn.Module | None:
    return model.get_input_embeddings() if isinstance(model, PreTrainedModel) else None


def _is_tied(model: nn.Module) -> bool:
    """Return whether embedding and head share a matrix; on the meta device only the config tells."""
    head, embedding = _head(model), _embedding(model)
    if head is None or embedding is None:
        return False
    config = getattr(model, "config", None)
    by_config = getattr(config.get_text_config() if config else None, "tie_word_embeddings", False)
    return bool(by_config) or getattr(head, "weight", None) is getattr(embedding, "weight", object())


def _shape(module: nn.Module) -> tuple[int, int]:
    """Return the numbers of outputs and inputs of a layer; the shape of quantized weights does not give them."""
    if isinstance(module, Conv1D):
        return int(module.nf), int(module.nx)
    if isinstance(module, nn.Embedding):
        return module.num_embeddings, module.embedding_dim
    return int(module.out_features), int(module.in_features)
