"""Write a model directory as a GGUF file and verify it with llama.cpp."""

from pathlib import Path
from typing import Any

import gguf
import torch
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from tuneline.config.sections.load import ModelLoadOptions
from tuneline.data.tokenizer.loader import load_tokenizer_from
from tuneline.errors import SourceError
from tuneline.export.gguf import proof, quantize, vocabulary, weights
from tuneline.export.gguf.architectures import Architecture, block_count, find_architecture, head_size
from tuneline.export.gguf.llama_server import check_installed
from tuneline.export.gguf.proof import GgufReport
from tuneline.export.gguf.quantize import Kind
from tuneline.model import quantize as quantized_models
from tuneline.model.load import read_config

EXACT_ROPE_TYPES = ("default", "linear", "llama3")
"""Scalings of the rotary embedding that are a factor per frequency."""


def write_gguf(
    folder: Path, target: Path, kind: Kind, *, options: ModelLoadOptions | None = None, name: str | None = None
) -> GgufReport:
    """Write a GGUF file and compare it with the model.

    Args:
        folder: Model directory with safetensors and `tokenizer.json`.
        target: File to write.
        kind: Data type of the matrices.
        options: Load options, such as `trust_remote_code`.
        name: Name of the model in the file; the folder's name if omitted.

    Raises:
        SourceError: The architecture or the tokenizer cannot be exported, or xllamacpp is not installed.
        VerificationError: llama.cpp computes something else than transformers. The file is removed.
    """
    check_installed()
    options = options or ModelLoadOptions()
    config = read_config(folder, options)
    if kind == "q4_k_m":
        _verify_layout(folder, target.with_name(f"{target.name}.check"), config, options)
    try:
        context = convert(folder, target, kind, config, name or folder.name)
        return proof.verify(folder, target, kind, options, context)
    except BaseException:
        target.unlink(missing_ok=True)
        raise


def _verify_layout(folder: Path, scratch: Path, config: Any, options: ModelLoadOptions) -> None:
    """Verify the conversion in 8 bits: 4 bits change the outputs so much that an error in one matrix would not show."""
    try:
        context = convert(folder, scratch, "q8_0", config, folder.name)
        proof.verify(folder, scratch, "q8_0", options, context)
    finally:
        scratch.unlink(missing_ok=True)


def convert(folder: Path, target: Path, kind: Kind, config: Any, name: str) -> int:
    """Write a GGUF file without verification; returns the context length."""
    entry, blocks = find_architecture(config), block_count(config)
    if quantized := quantized_models.quantization_kind(config.to_dict()):
        raise SourceError(f"gguf: the model is quantized ({quantized}), expected float weights. Set gguf: none.")
    sources = weights.find_sources(folder, entry.arch, config, entry.transform, blocks)
    known = vocabulary.read_vocabulary(folder, _embedding_rows(sources))
    writer = gguf.GGUFWriter(target, gguf.MODEL_ARCH_NAMES[entry.arch])
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(name)
    writer.add_file_type(quantize.FILE_TYPES[kind])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    entry.add_metadata(writer, config)
    context = context_length(config, entry)
    writer.add_context_length(context)
    factors = _add_rope(writer, config, entry)
    vocabulary.add_vocabulary(writer, known, load_tokenizer_from(folder))
    tied = not any(source.kind == gguf.MODEL_TENSOR.OUTPUT for source in sources)
    types = {source.name: quantize.tensor_type(source, kind, config, tied=tied, blocks=blocks) for source in sources}
    for source in sources:
        _plan(writer, source.name, source.shape, types[source.name])
    if factors is not None:
        _plan(writer, "rope_freqs.weight", tuple(factors.shape), gguf.GGMLQuantizationType.F32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for source in sources:
        tensor = source.read(entry.transform, config)
        writer.write_tensor_data(quantize.encode(tensor, types[source.name], source.name))
    if factors is not None:
        writer.write_tensor_data(factors.numpy())
    writer.close()
    return context


def _plan(writer: gguf.GGUFWriter, name: str, shape: tuple[int, ...], data_type: gguf.GGMLQuantizationType) -> None:
    """Announce a tensor, which is written later: only one is in memory at a time."""
    import numpy as np

    encoded = quantize.encoded_shape(shape, data_type)
    dtypes = {gguf.GGMLQuantizationType.F32: np.float32, gguf.GGMLQuantizationType.F16: np.float16}
    dtype = np.dtype(dtypes.get(data_type, np.uint8))
    size = int(np.prod(encoded)) * dtype.itemsize
    writer.add_tensor_info(name, encoded, dtype, size, raw_dtype=data_type)


def _embedding_rows(sources: list[weights.Source]) -> int:
    rows = [source.shape[0] for source in sources if source.kind == gguf.MODEL_TENSOR.TOKEN_EMBD]
    if not rows:
        raise SourceError("gguf: the weights contain no token embeddings. Set gguf: none.")
    return rows[0]


def context_length(config: Any, entry: Architecture) -> int:
    """Return the context length; it ends with a sliding window that llama.cpp does not support."""
    length = int(getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", 2048))
    window = getattr(config, "sliding_window", None)
    uses_window = window and getattr(config, "use_sliding_window", True)
    return min(length, int(window)) if uses_window and not entry.window else length


def _add_rope(writer: gguf.GGUFWriter, config: Any, entry: Architecture) -> torch.Tensor | None:
    """Add the rotary embedding; returns a divisor per frequency if it is scaled.

    Raises:
        SourceError: The scaling cannot be expressed.
    """
    parameters = getattr(config, "rope_parameters", None) or {}
    if entry.layered_rope and "full_attention" in parameters:
        writer.add_rope_freq_base_swa(parameters["sliding_attention"]["rope_theta"])
        parameters = parameters["full_attention"]
        if parameters.get("rope_type") == "linear":
            writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
            writer.add_rope_scaling_factor(parameters["factor"])
    if not parameters:
        return None
    kind = parameters.get("rope_type", "default")
    if kind not in EXACT_ROPE_TYPES:
        raise SourceError(
            f"gguf: the rotary embedding is scaled by {kind!r}, expected {', '.join(EXACT_ROPE_TYPES)}. Set gguf: none."
        )
    writer.add_rope_freq_base(parameters["rope_theta"])
    if kind == "default" or entry.layered_rope:
        return None
    scaled, _ = ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"))
    size = head_size(config)
    plain = parameters["rope_theta"] ** -(torch.arange(0, size, 2, dtype=torch.float32) / size)
    return (plain / scaled).float()
