"""Weights of a checkpoint as llama.cpp stores them: names, layouts of heads, stacked experts."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import torch
from safetensors import safe_open

from tuneline.errors import SourceError

EXPERT_PATTERN = re.compile(r"^(?P<head>.*\.experts)\.(?P<number>\d+)\.(?P<tail>.*)$")
BUFFERS = (".attn.bias", ".attn.masked_bias", ".attention.bias", ".attention.masked_bias", ".rotary_emb.inv_freq")
"""Ends of names of tensors that are not weights."""

Transform = Callable[[str, torch.Tensor, Any], torch.Tensor]
"""Name, tensor and config -> tensor. Must also work on tensors without data (device meta)."""


@dataclass(frozen=True)
class Source:
    """A tensor of the GGUF file and the tensors of the checkpoint that it is made of."""

    name: str
    """Name in the GGUF file."""

    kind: gguf.MODEL_TENSOR
    parts: tuple[tuple[str, Path], ...]
    """Name in the checkpoint, and file; several experts are stacked."""

    shape: tuple[int, ...]

    def read(self, transform: Transform, config: Any) -> torch.Tensor:
        """Return the tensor in float32, in the layout of llama.cpp."""
        tensors = []
        for name, path in self.parts:
            with safe_open(path, framework="pt") as file:
                tensors.append(transform(name, file.get_tensor(name).float(), config))
        return tensors[0] if len(tensors) == 1 and not _is_expert(self.parts[0][0]) else torch.stack(tensors)


def find_sources(folder: Path, arch: gguf.MODEL_ARCH, config: Any, transform: Transform, blocks: int) -> list[Source]:
    """Return the tensors of the GGUF file of a model directory.

    Args:
        folder: Folder with safetensors.
        arch: Architecture of llama.cpp.
        config: Model config.
        transform: Change of layout.
        blocks: Number of layers.

    Raises:
        SourceError: A tensor has no name in llama.cpp.
    """
    groups: dict[str, list[tuple[str, Path]]] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                if not name.endswith(BUFFERS):
                    groups.setdefault(_group_name(name), []).append((name, path))
                    shapes[name] = tuple(file.get_slice(name).get_shape())
    names = gguf.get_tensor_name_map(arch, blocks)
    sources = []
    for group, parts in groups.items():
        if group == "lm_head.weight" and getattr(config, "tie_word_embeddings", False):
            continue  # llama.cpp uses the embeddings
        match = names.get_type_and_name(_map_key(group), try_suffixes=(".weight", ".bias"))
        if match is None:
            raise SourceError(f"gguf: the tensor {group} has no name in llama.cpp. Set gguf: none.")
        parts.sort(key=_expert_number)
        example = transform(parts[0][0], torch.empty(shapes[parts[0][0]], device="meta"), config)
        shape = (len(parts), *example.shape) if _is_expert(parts[0][0]) else tuple(example.shape)
        sources.append(Source(match[1], match[0], tuple(parts), shape))
    if not sources:
        raise SourceError(f"gguf: {folder} contains no safetensors. Export them first.")
    return sorted(sources, key=lambda source: _order(source.name))


def _order(name: str) -> tuple[int, str]:
    """Sort by layer: tensors of the whole model first."""
    match = re.match(r"blk\.(\d+)\.", name)
    return (int(match[1]) if match else -1, name)


def _is_expert(name: str) -> bool:
    return EXPERT_PATTERN.match(name) is not None


def _expert_number(part: tuple[str, Path]) -> int:
    match = EXPERT_PATTERN.match(part[0])
    return int(match["number"]) if match else 0


def _group_name(name: str) -> str:
    match = EXPERT_PATTERN.match(name)
    return f"{match['head']}.{match['tail']}" if match else name


def _map_key(name: str) -> str:
    """Return the key of a name in the maps of `gguf`, which know stacked experts of Mixtral by another name."""
    return re.sub(r"^model\.(layers\.\d+)\.block_sparse_moe\.experts\.", r"\1.feed_forward.experts.", name)


def keep(name: str, tensor: torch.Tensor, config: Any) -> torch.Tensor:
    """Return a tensor unchanged."""
    return tensor


def permute_heads(name: str, tensor: torch.Tensor, config: Any) -> torch.Tensor:
    """Interleave the two halves of each query and key head: llama.cpp rotates neighbors, transformers halves."""
    if not re.search(r"\.(q|k)_proj\.(weight|bias)$", name):
        return tensor
    heads = config.num_attention_heads
    if ".k_proj." in name:
        heads = getattr(config, "num_key_value_heads", None) or heads
    halves = tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, *tensor.shape[1:])
    return halves.swapaxes(1, 2).reshape(tensor.shape)


def add_one_to_norms(name: str, tensor: torch.Tensor, config: Any) -> torch.Tensor:
    """Add 1 to the weights of norms: Gemma multiplies by `1 + weight`."""
    return tensor + 1 if name.endswith("norm.weight") else tensor


def transpose_convolutions(name: str, tensor: torch.Tensor, config: Any) -> torch.Tensor:
    """Transpose the weights of GPT-2, which stores [inputs, outputs]."""
    return tensor.T.contiguous() if re.search(r"\.(c_attn|c_proj|c_fc)\.weight$", name) else tensor


def separate_fused_heads(name: str, tensor: torch.Tensor, config: Any) -> torch.Tensor:
    """Reorder fused weights of GPT-NeoX from [head, query/key/value] to [query/key/value, head]."""
    if ".query_key_value." not in name:
        return tensor
    heads = config.num_attention_heads
    fused = tensor.reshape(heads, 3, tensor.shape[0] // heads // 3, *tensor.shape[1:])
    return fused.swapaxes(0, 1).reshape(tensor.shape)
