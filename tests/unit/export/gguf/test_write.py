"""GGUF export: types of tensors, verification by llama.cpp, and what it detects."""

import ctypes
import json
import shutil
import sys

import gguf
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.gguf_models import build_gguf_model
from tuneline.config.sections.load import ModelLoadOptions
from tuneline.errors import SourceError, VerificationError
from tuneline.export.gguf import llama_server, proof, quantize, weights, write
from tuneline.export.gguf.proof import BOUNDS
from tuneline.model.load import read_config

Type = gguf.GGMLQuantizationType


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A model directory; do not write into it."""
    return build_gguf_model(tmp_path_factory.mktemp("gguf") / "model")


@pytest.fixture
def folder(source, tmp_path):
    """A copy that tests may modify."""
    return shutil.copytree(source, tmp_path / "copy")


def change_config(folder, **keys):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


def tensor_types(path):
    return {tensor.name: tensor.tensor_type for tensor in gguf.GGUFReader(path).tensors}


@pytest.mark.parametrize(
    ("kind", "matrix", "output"),
    [("f16", Type.F16, Type.F16), ("q8_0", Type.Q8_0, Type.Q8_0), ("q4_k_m", Type.Q4_K, Type.Q6_K)],
)
def test_a_file_of_each_type_computes_what_the_model_computes(source, tmp_path, kind, matrix, output):
    report = write.write_gguf(source, tmp_path / "model.gguf", kind)

    types = tensor_types(tmp_path / "model.gguf")
    assert types["blk.1.attn_q.weight"] == matrix
    assert types["output.weight"] == output
    assert types["output_norm.weight"] == Type.F32
    assert report.bytes == (tmp_path / "model.gguf").stat().st_size
    assert 0 <= report.mean_kl <= BOUNDS[kind].mean_kl / 5, "far below the bound"
    assert report.positions == 32
    assert report.texts > 20
    assert report.conversations == 60
    assert report.facts()["gguf.max_kl"] == report.max_kl


def test_each_type_is_larger_and_closer_than_the_next(source, tmp_path):
    reports = [write.write_gguf(source, tmp_path / f"{kind}.gguf", kind) for kind in ("f16", "q8_0", "q4_k_m")]

    assert reports[0].bytes > 1.5 * reports[1].bytes > 2 * reports[2].bytes
    assert reports[0].mean_kl < reports[1].mean_kl / 10 < reports[2].mean_kl / 100


@pytest.mark.parametrize(
    ("kind", "damage"), [("f16", "exchanged heads"), ("q8_0", "zero matrix"), ("q4_k_m", "no permutation")]
)
def test_a_damaged_tensor_is_detected_and_the_file_removed(folder, tmp_path, monkeypatch, kind, damage):
    original = weights.Source.read

    def read(self, transform, config):
        if damage == "no permutation":
            return original(self, weights.keep, config)
        tensor = original(self, transform, config)
        if damage == "zero matrix" and self.name == "blk.1.ffn_down.weight":
            return torch.zeros_like(tensor)
        return tensor.flip(0) if damage == "exchanged heads" and self.name == "blk.0.attn_v.weight" else tensor

    monkeypatch.setattr(weights.Source, "read", read)
    target = tmp_path / "model.gguf"

    with pytest.raises(VerificationError, match="llama.cpp and transformers disagree on llama: KL"):
        write.write_gguf(folder, target, kind)
    assert list(tmp_path.glob("*.gguf*")) == []


def test_another_rope_base_is_detected(folder, tmp_path, monkeypatch):
    target = tmp_path / "model.gguf"
    config = read_config(folder, ModelLoadOptions())
    config.rope_parameters = {"rope_type": "default", "rope_theta": 100.0}
    write.convert(folder, target, "f16", config, "tiny")

    with pytest.raises(VerificationError, match="disagree"):
        proof.verify(folder, target, "f16", ModelLoadOptions(), 512)


@pytest.mark.parametrize(
    "scaling",
    [
        {"rope_type": "linear", "factor": 4.0},
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    ],
    ids=lambda scaling: scaling["rope_type"],
)
def test_a_scaled_rotary_embedding_is_exported(tmp_path, scaling):
    folder = build_gguf_model(tmp_path / "model", rope_parameters={"rope_theta": 10000.0, **scaling})

    report = write.write_gguf(folder, tmp_path / "model.gguf", "f16")

    assert "rope_freqs.weight" in tensor_types(tmp_path / "model.gguf")
    assert report.mean_kl < 1e-5


def test_unsupported_models_are_refused_by_name(folder, tmp_path):
    target = tmp_path / "model.gguf"
    change_config(folder, model_type="opt")
    with pytest.raises(SourceError, match=r"architecture 'opt' cannot be exported to GGUF. Supported: .*llama"):
        write.write_gguf(folder, target, "f16")
    change_config(
        folder, model_type="llama", rope_parameters={"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0}
    )
    with pytest.raises(SourceError, match="scaled by 'yarn'"):
        write.write_gguf(folder, target, "f16")
    assert not target.exists()


def test_weights_that_float16_cannot_hold_are_refused(folder, tmp_path):
    tensors = load_file(folder / "model.safetensors")
    tensors["model.embed_tokens.weight"][5, 5] = 1e6
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    with pytest.raises(VerificationError, match=r"token_embd.weight has values above 65504"):
        write.write_gguf(folder, tmp_path / "model.gguf", "f16")


def test_without_xllamacpp_the_extra_is_named(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(llama_server, "find_spec", lambda name: None)

    with pytest.raises(SourceError, match=r"Install the extra llama-cpp: pip install .tuneline\[llama-cpp\]"):
        write.write_gguf(folder, tmp_path / "model.gguf", "f16")


def source_of(kind, layer, shape=(256, 256)):
    name = gguf.TENSOR_NAMES[kind].format(bid=layer) + ".weight"
    return weights.Source(name, kind, (), shape)


def test_the_4_bit_mixture_is_that_of_llama_cpp():
    Name = gguf.MODEL_TENSOR

    def chosen(kind, layer=0, shape=(256, 256), tied=False, config=None):
        return quantize.tensor_type(source_of(kind, layer, shape), "q4_k_m", config, tied=tied, blocks=32)

    wide = [layer for layer in range(32) if chosen(Name.FFN_DOWN, layer) == Type.Q6_K]
    assert wide == [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31]
    assert wide == [layer for layer in range(32) if chosen(Name.ATTN_V, layer) == Type.Q6_K]
    assert chosen(Name.ATTN_Q) == chosen(Name.FFN_UP) == chosen(Name.TOKEN_EMBD) == Type.Q4_K
    assert chosen(Name.OUTPUT) == chosen(Name.TOKEN_EMBD, tied=True) == Type.Q6_K
    assert chosen(Name.FFN_UP, shape=(256, 96)) == Type.Q5_0, "not a multiple of 256"
    assert chosen(Name.FFN_DOWN, shape=(256, 96)) == Type.Q8_0
    assert chosen(Name.FFN_UP, shape=(256, 40)) == Type.F16, "not a multiple of 32"
    assert chosen(Name.ATTN_NORM) == Type.F32


@pytest.mark.parametrize("name", ["Q8_0", "Q4_K", "Q6_K", "Q5_0", "Q5_1", "Q5_K"])
def test_quantized_values_are_close_to_the_weights(name):
    torch.manual_seed(0)
    tensor = torch.randn(8, 512)

    encoded = quantize.encode(tensor, Type[name], "test")

    decoded = torch.from_numpy(gguf.quants.dequantize(encoded, Type[name]))
    error = float((decoded - tensor).pow(2).mean().sqrt())
    assert 0 < error < {"Q8": 0.01, "Q6": 0.03, "Q5": 0.06, "Q4": 0.12}[name[:2]]


def test_nothing_of_xllamacpp_is_imported_in_this_process(source, tmp_path):
    write.convert(source, tmp_path / "model.gguf", "q4_k_m", read_config(source, ModelLoadOptions()), "tiny")

    assert "xllamacpp" not in sys.modules


def test_a_quantizer_that_changes_the_weights_is_detected(monkeypatch):
    class Library:
        @staticmethod
        def ggml_quantize_chunk(kind, source, target, start, rows, columns, matrix):
            ctypes.memset(target, 0, rows * columns // 256 * 144)
            return rows * columns // 256 * 144

    monkeypatch.setattr(quantize, "_library", lambda: Library)

    with pytest.raises(VerificationError, match="Q4_K changes weights by 100%"):
        quantize.encode(torch.randn(4, 256), Type.Q4_K, "test")
