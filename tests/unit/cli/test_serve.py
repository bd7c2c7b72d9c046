"""`tuneline serve`: options, settings files, and errors in one line before anything is loaded."""

import pytest
import yaml
from typer.testing import CliRunner

from tuneline.cli import serve
from tuneline.cli.app import app
from tuneline.errors import RecipeError, TunelineError

KEY = "k" * 20


@pytest.fixture
def invoke(monkeypatch, tmp_path):
    """Run the command without loading a model; returns the settings and the keys."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TUNELINE_API_KEY", raising=False)
    calls = []
    monkeypatch.setattr(serve, "run", lambda config, keys: calls.append((config, keys)))

    def run(*words):
        result = CliRunner().invoke(app, ["serve", *map(str, words)])
        if isinstance(result.exception, TunelineError):
            raise result.exception
        assert result.exit_code == 0, result.output
        return calls.pop()

    return run


def test_options_become_settings(invoke, tmp_path):
    config, keys = invoke(
        *(
            "demo@champion",
            "--port",
            0,
            "--adapter",
            "poet=saves/poet",
            "--adapter",
            "prose=a/b",
            "--dtype",
            "bfloat16",
        ),
        *("--max-batch-size", 4, "--swap", "restart", "--shadow", 0.1, "--follow", 5, "--served-name", "gpt-4o"),
        *("--engine", "vllm", "--engine-python", "env/bin/python", "--canary", "prompts.txt", "--log-prompts"),
    )

    assert config.model_dump(exclude_defaults=True) == {
        "model": "demo@champion",
        "adapters": {"poet": "saves/poet", "prose": "a/b"},
        "served_names": ["gpt-4o"],
        "engine": "vllm",
        "engine_python": tmp_path / "env/bin/python",
        "dtype": "bfloat16",
        "max_batch_size": 4,
        "port": 0,
        "follow": 5,
        "swap": "restart",
        "canary_prompts": tmp_path / "prompts.txt",
        "shadow": 0.1,
        "log_prompts": True,
    }
    assert keys == {}


def test_options_replace_the_values_of_a_settings_file(invoke, tmp_path):
    (tmp_path / "server.yaml").write_text(yaml.safe_dump({"model": "demo", "port": 1, "shadow": 0.5, "follow": 9}))

    config, _ = invoke("server.yaml", "--port", 2, "--follow", 0)

    assert (config.model, config.port, config.shadow, config.follow) == ("demo", 2, 0.5, 0)


def test_a_llamafactory_file_is_translated_and_reported(invoke, tmp_path, capfd):
    content = {"model_name_or_path": "a/b", "template": "llama3", "infer_backend": "huggingface"}
    (tmp_path / "theirs.yaml").write_text(yaml.safe_dump(content))

    config, _ = invoke("theirs.yaml", "--dtype", "float32")

    assert (config.model, config.template, config.dtype) == ("a/b", "llama3", "float32")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2", "models.example.org"])
def test_another_address_than_loopback_needs_a_key(invoke, tmp_path, monkeypatch, host):
    with pytest.raises(RecipeError, match=f"--host {host} can be reached from other machines.*Set --key-file"):
        invoke("demo", "--host", host)
    (tmp_path / "keys.yaml").write_text(f"web: {KEY}\n")
    assert invoke("demo", "--host", host, "--key-file", "keys.yaml")[1]["web"].key == KEY
    monkeypatch.setenv("TUNELINE_API_KEY", KEY)
    assert invoke("demo", "--host", host)[1]["environment"].key == KEY


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["demo", "--adapter", "poet"], "--adapter 'poet': expected NAME=PATH"),
        (["demo", "--adapter", "a=b", "--adapter", "a=c"], "--adapter a is given twice"),
        (["demo", "--port", "70000"], "--port: .*less than or equal to 65535.*got 70000"),
        (["demo", "--engine", "ollama"], "--engine: unknown engine 'ollama'"),
        (["demo", "--engine", "vllm"], "engine_python: required"),
        (["demo", "--swap", "never"], "--swap: unknown swap 'never'"),
        (["demo", "--shadow", "2"], "--shadow: "),
        (["demo", "--key-file", "none.yaml"], "none.yaml: "),
        (["none.yaml"], "none.yaml: "),
        (["demo", "--served-name", "a b"], "--served-name: "),
    ],
)
def test_errors_are_one_line(invoke, words, message):
    with pytest.raises(RecipeError, match=message) as caught:
        invoke(*words)
    assert "\n" not in str(caught.value)


def test_the_help_lists_the_options(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    output = CliRunner().invoke(app, ["serve", "--help"]).output

    for option in ("--engine", "--engine-python", "--host", "--port", "--key-file", "--adapter", "--swap", "--shadow"):
        assert option in output
