"""The snippets of docs/serving.md run: Python as it is printed, curl against a server, settings files as settings."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests import api_server
from tuneline.config.sections.serve import ServeConfig
from tuneline.data.tokenizer.loader import load_tokenizer_from

DOCS = Path("docs/serving.md")
ADDRESS = "http://127.0.0.1:8000"
SCORES = "/v1/score"


def snippets(language):
    return re.findall(rf"^```{language}\n(.*?)^```", DOCS.read_text(), re.DOTALL | re.MULTILINE)


def curl_commands():
    """Return the curl commands; one ends with the line that closes its quotes."""
    commands, lines = [], []
    for line in "\n".join(snippets("bash")).replace("\\\n", " ").splitlines():
        if lines or line.startswith("curl "):
            lines.append(line)
        if lines and "\n".join(lines).count("'") % 2 == 0:
            commands.append("\n".join(lines))
            lines = []
    return commands


@pytest.fixture(scope="module")
def tokenizer(tiny_model):
    return load_tokenizer_from(tiny_model)


def test_the_python_snippets_run_in_order(tokenizer, capsys):
    client_snippets = [snippet for snippet in snippets("python") if "tuneline.serve" not in snippet]
    with api_server.serve(tokenizer) as server:
        code = "\n".join(client_snippets).replace(ADDRESS, server.url.removesuffix("/v1"))
        exec(compile(code, str(DOCS), "exec"), {})

    output = capsys.readouterr().out
    assert output.startswith(f"demo/7 {api_server.TEXT}")
    assert "tokens" in output
    assert len(client_snippets) >= 4


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_curl_snippets_are_answered(tokenizer):
    commands = curl_commands()
    assert len(commands) >= 5
    for reward in (False, True):
        with api_server.serve(tokenizer, reward=reward) as server:
            for command in commands:
                if (SCORES in command) == reward:
                    command = command.replace(ADDRESS, server.url.removesuffix("/v1"))
                    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
                    assert result.returncode == 0, command
                    assert '"error"' not in result.stdout, (command, result.stdout)
                    assert result.stdout.startswith("data: ") or json.loads(result.stdout), command


def test_the_settings_file_is_valid():
    (settings, *_) = [snippet for snippet in snippets("yaml") if "model:" in snippet]

    config = ServeConfig.model_validate(
        {key: value for key, value in yaml.safe_load(settings).items() if key != "keys"}
    )

    assert config.model == "demo@champion"
    assert config.limits.max_queue_length == 100
