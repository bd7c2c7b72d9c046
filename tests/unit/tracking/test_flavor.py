"""A model directory served by MLflow: every request format."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import mlflow.pyfunc
import numpy as np
import pandas as pd
import pytest
import torch
from mlflow.pyfunc import scoring_server
from transformers import AutoConfig, LlamaForCausalLM

from tuneline.errors import DataError
from tuneline.model.checkpoint import NON_CONTENT_FILES, Checkpoint
from tuneline.tracking import flavor

PROMPTS = ["What is one and two?", "Say 1"]
CHATS = [[{"role": "user", "content": text}] for text in PROMPTS]
PARAMS = {"max_tokens": 3}


@pytest.fixture(scope="module")
def folder(tiny_model, tmp_path_factory):
    """A stored model with `MLmodel` next to its files; its untied random head generates varied answers."""
    path = tmp_path_factory.mktemp("stored")
    shutil.copytree(tiny_model, path / flavor.FILES)
    config = AutoConfig.from_pretrained(tiny_model, tie_word_embeddings=False)
    torch.manual_seed(3)
    model = LlamaForCausalLM(config)
    torch.nn.init.normal_(model.lm_head.weight)
    model.save_pretrained(path / flavor.FILES)
    flavor.write_mlmodel(path)
    return path


@pytest.fixture(scope="module")
def served_model(folder):
    return mlflow.pyfunc.load_model(str(folder))


@pytest.fixture(scope="module")
def answers(served_model):
    """Answers to the two chats, one request per chat."""
    texts = [served_model.predict({"messages": chat}, params=PARAMS) for chat in CHATS]
    assert texts[0] != texts[1]
    assert all(texts)
    return texts


BODIES = {
    "split": {"dataframe_split": {"columns": ["messages"], "data": [[chat] for chat in CHATS]}},
    "records": {"dataframe_records": [{"messages": chat} for chat in CHATS]},
    "prompts": {"dataframe_records": [{"prompt": text} for text in PROMPTS]},
    "both columns": {"dataframe_records": [{"prompt": PROMPTS[0]}, {"messages": CHATS[1]}]},
    "instances": {"instances": [{"messages": chat} for chat in CHATS]},
    "instances of prompts": {"instances": [{"prompt": text} for text in PROMPTS]},
    "texts as instances": {"instances": PROMPTS},
    "inputs": {"inputs": {"messages": CHATS}},
    "inputs of prompts": {"inputs": {"prompt": PROMPTS}},
    "texts as inputs": {"inputs": PROMPTS},
}


def post(served_model, body, kind="application/json"):
    data = body if isinstance(body, str) else json.dumps(body)
    response = scoring_server.invocations(data, kind, served_model, served_model.metadata.get_input_schema())
    assert response.status == 200
    return json.loads(response.response)


@pytest.mark.parametrize("name", sorted(BODIES))
def test_every_request_format_gets_the_answers_of_single_chats(served_model, answers, name):
    assert post(served_model, BODIES[name] | {"params": PARAMS}) == {"predictions": answers}


def test_a_single_chat_and_a_csv_file_are_answered(served_model, answers):
    table = pd.DataFrame({"messages": [json.dumps(chat) for chat in CHATS]})

    assert post(served_model, {"messages": CHATS[0], **PARAMS}) == answers[0]
    long = post(served_model, table.to_csv(index=False), "text/csv")["predictions"]
    assert [text.startswith(short) for text, short in zip(long, answers, strict=True)] == [True, True]


def test_mlflow_passes_on_the_parameter_max_tokens(served_model, answers):
    long = served_model.predict({"messages": CHATS[0]}, params={"max_tokens": 30})

    assert len(long) > len(answers[0])


def test_a_text_is_continued_without_a_chat_template(served_model):
    assert flavor.parse_request({"text": "The quick"}) == ("text", "The quick")
    assert isinstance(served_model.predict(pd.DataFrame({"text": ["The quick"]}), params=PARAMS)[0], str)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "x"}, r"has the columns \['question'\] and none of \['messages', 'prompt', 'text'\]"),
        ({"messages": "hello"}, r"messages: got None, expected a list of role and content"),
        ({"messages": [{"content": "hello"}]}, r"expected a list of role and content"),
        ({"prompt": 3}, r"prompt: got 3, expected a text"),
    ],
)
def test_rows_without_a_request_are_refused(row, message):
    with pytest.raises(DataError, match=message):
        flavor.parse_request(row)


def test_columns_of_different_lengths_are_refused():
    with pytest.raises(DataError, match="lengths"):
        flavor.to_rows({"prompt": np.array(["a", "b"]), "text": np.array(["c"])})


def test_inputs_are_moved_to_the_device_of_the_model(served_model, tiny_model):
    """The meta device stands for a GPU."""
    model, moved = flavor.ChatModel(str(tiny_model)), []

    def generate(input_ids, **_):
        moved.append(input_ids.device.type)
        return torch.zeros((1, input_ids.shape[1] + 1), dtype=torch.long)

    model.model = SimpleNamespace(device=torch.device("meta"), generate=generate)
    model.predict({"messages": CHATS[0]})

    assert moved == ["meta"]


def test_the_mlmodel_file_is_not_part_of_the_content_hash(folder, tiny_model):
    inside = shutil.copytree(tiny_model, folder / "copy")
    flavor.write_mlmodel(inside)

    assert "MLmodel" in NON_CONTENT_FILES
    assert Checkpoint(inside, "full").content_hash() == Checkpoint(tiny_model, "full").content_hash()


@pytest.mark.slow
def test_mlflow_models_serve_answers_every_payload(folder, answers):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", str(folder), "--env-manager", "local"]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # MLflow starts uvicorn by its name
    server = subprocess.Popen(
        [*command, "--host", "127.0.0.1", "--port", str(port)], env={**os.environ, "PATH": path}, start_new_session=True
    )
    try:
        _wait(server, f"http://127.0.0.1:{port}/ping")
        for name in ("split", "records", "instances", "inputs of prompts"):
            body = json.dumps(BODIES[name] | {"params": PARAMS}).encode()
            request = urllib.request.Request(
                f"http://127.0.0.1:{port}/invocations", body, {"Content-Type": "application/json"}
            )
            with urllib.request.urlopen(request, timeout=120) as response:
                assert json.loads(response.read()) == {"predictions": answers}
    finally:
        _end(server)


def _wait(server, url):
    for _ in range(240):
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            assert server.poll() is None, "the server ended"
            time.sleep(1)
    pytest.fail("the server did not start")


def _end(server):
    if server.poll() is None:
        os.killpg(server.pid, signal.SIGTERM)
    server.wait(timeout=60)
