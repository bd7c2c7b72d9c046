"""Servers with a scripted engine."""

from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from tests import api_server


@pytest.fixture(scope="session")
def tokenizer(tiny_model: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(tiny_model)


@pytest.fixture(scope="module")
def module_server(tokenizer: PreTrainedTokenizerBase) -> Iterator[api_server.Server]:
    with api_server.serve(tokenizer) as server:
        yield server


@pytest.fixture
def server(module_server: api_server.Server) -> api_server.Server:
    """A server that the tests of a module share; each test begins with a fresh engine state."""
    engine = module_server.engine
    engine.__init__(engine.tokenizer)
    return module_server


@pytest.fixture
def client(server: api_server.Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client
