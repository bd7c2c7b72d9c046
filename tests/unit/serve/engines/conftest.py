"""A tiny GGUF model and an engine that serves it."""

import asyncio

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.gguf_models import build_gguf_model
from tuneline.config.sections.load import ModelLoadOptions
from tuneline.export.gguf import write
from tuneline.model.load import read_config
from tuneline.serve.engines.llama_cpp import LlamaCppEngine


@pytest.fixture(scope="session")
def gguf_folder(tmp_path_factory):
    """A model directory with `model.gguf`, without verification; do not write into it."""
    folder = build_gguf_model(tmp_path_factory.mktemp("served") / "model")
    write.convert(folder, folder / "model.gguf", "f16", read_config(folder, ModelLoadOptions()), "tiny")
    return folder


@pytest.fixture(scope="session")
def tokenizer(gguf_folder):
    return AutoTokenizer.from_pretrained(gguf_folder)


@pytest.fixture(scope="session")
def reference(gguf_folder):
    """The same model in transformers."""
    return AutoModelForCausalLM.from_pretrained(gguf_folder, dtype=torch.float32).eval()


@pytest.fixture(scope="session")
def engine_home(tmp_path_factory):
    """The state root of the engines of a session, which outlive a test."""
    with pytest.MonkeyPatch.context() as env:
        env.setenv("TUNELINE_HOME", str(tmp_path_factory.mktemp("home")))
        yield


@pytest.fixture(scope="module")
def engine(gguf_folder, tokenizer, engine_home):
    loaded = LlamaCppEngine.load(
        gguf_folder / "model.gguf", tokenizer=tokenizer, max_batch_size=2, max_length=256, threads=1, embeddings=True
    )
    yield loaded
    loaded.close()


@pytest.fixture
def collect():
    """Return a function that generates an answer in an event loop of its own."""

    def run(engine, request):
        async def gather():
            return [token async for token in engine.generate(request)]

        return asyncio.run(gather())

    return run
