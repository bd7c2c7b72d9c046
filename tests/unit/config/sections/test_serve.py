"""Settings of a server: values, their file, and API keys."""

import pytest
from pydantic import ValidationError

from tuneline.config.parsing import key_file, serve_file
from tuneline.config.sections.serve import ServeConfig, is_loopback
from tuneline.errors import RecipeError


def test_a_model_is_enough():
    config = ServeConfig(model="demo")

    assert (config.host, config.port, config.engine, config.swap, config.shadow) == (
        "127.0.0.1",
        8000,
        "transformers",
        "beside",
        0,
    )
    assert config.is_local
    assert config.limits.max_queue_length == 256


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "[::1]", "localhost", "LOCALHOST."])
def test_loopback_addresses_are_local(host):
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "192.168.1.2", "example.org", "localhost.example.org", "127.0.0.1.example.org", ""]
)
def test_other_addresses_are_not_local(host):
    assert not is_loopback(host)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"host": "http://127.0.0.1"}, "is not a host name or an address"),
        ({"port": 70_000}, "less than or equal to 65535"),
        ({"engine": "vllm"}, "engine_python: required for engine vllm"),
        ({"engine": "llama_cpp", "adapters": {"a": "b"}}, "not supported by engine llama_cpp"),
        ({"shadow": 1.5}, "less than or equal to 1"),
        ({"adapters": {"../x": "b"}}, "String should match pattern"),
        ({"served_names": ["a b"]}, "String should match pattern"),
        ({"max_new_tokens": 3}, "Extra inputs are not permitted"),
    ],
)
def test_invalid_settings_are_refused(changes, message):
    with pytest.raises(ValidationError, match=message):
        ServeConfig(model="m", **changes)


def test_paths_in_a_file_start_at_its_folder(tmp_path, monkeypatch):
    (tmp_path / "serving" / "poet").mkdir(parents=True)
    (tmp_path / "serving" / "model").mkdir()
    path = tmp_path / "serving" / "server.yaml"
    path.write_text("model: model\nadapters:\n  poet: poet\n  other: owner/name\nkeys: keys.yaml\nport: 1\n")
    monkeypatch.chdir(tmp_path)

    config = serve_file.read(path, port=2)

    assert config.model == str(path.parent / "model")
    assert config.adapters == {"poet": str(path.parent / "poet"), "other": "owner/name"}
    assert (config.keys, config.port) == (path.parent / "keys.yaml", 2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: m\nprot: 1\n", "server.yaml:2: prot: unknown key. Did you mean 'port'?"),
        ("port: 1\n", "server.yaml:1: model: is required."),
        ("model: m\nlimits:\n  max_body_bytes: 1\n", "server.yaml:3: limits.max_body_bytes: .*got 1"),
        ("model: m\nswap: sideways\n", "server.yaml:2: swap: unknown swap 'sideways'"),
        ("parameters:\n  recipe: {}\n", "got a run configuration. Run it with: tuneline run"),
        ("- a\n", "server.yaml:1: expected a mapping"),
        ("model: m\nengine: vllm\n", "server.yaml:1: .*engine_python: required"),
    ],
)
def test_errors_in_a_file_have_its_line(tmp_path, text, message):
    path = tmp_path / "server.yaml"
    path.write_text(text)

    with pytest.raises(RecipeError, match=message) as caught:
        serve_file.read(path)
    assert "\n" not in str(caught.value)


KEY, OTHER = "k" * 20, "o" * 20


@pytest.fixture
def write_keys(tmp_path):
    def write(text):
        path = tmp_path / "keys.yaml"
        path.write_text(text)
        path.chmod(0o600)
        return path

    return write


def test_keys_have_names_and_limits(write_keys, monkeypatch):
    monkeypatch.setenv("TUNELINE_API_KEY", "e" * 16)

    keys = key_file.read_keys(write_keys(f"web: {KEY}\nbatch:\n  key: {OTHER}\n  max_concurrent: 2\n"))

    assert {name: entry.key for name, entry in keys.items()} == {"web": KEY, "batch": OTHER, "environment": "e" * 16}
    assert (keys["web"].max_concurrent, keys["batch"].max_concurrent) == (None, 2)
    assert KEY not in repr(keys)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("web: secret\n", "keys.yaml:1: web.*at least 16 characters"),
        (f"web: '{KEY} {KEY}'\n", "keys.yaml:1: web"),
        (f"web:\n  key: {KEY}\n  limit: 3\n", "keys.yaml:3: web.limit: unknown key"),
        (f"web: {KEY}\nbatch: {KEY}\n", "web and batch have the same key"),
        (f"a/b: {KEY}\n", "keys.yaml:1: a/b"),
        ("{}\n", "keys.yaml:1:"),
        ("web: 12345678901234567890\n", "keys.yaml:1: web"),
    ],
)
def test_invalid_keys_are_refused_without_showing_them(write_keys, monkeypatch, text, message):
    monkeypatch.delenv("TUNELINE_API_KEY", raising=False)

    with pytest.raises(RecipeError, match=message) as caught:
        key_file.read_keys(write_keys(text))
    assert "\n" not in str(caught.value)
    assert not any(secret in str(caught.value) for secret in ("secret", KEY, "1234567890"))


def test_a_short_key_in_the_environment_is_refused(monkeypatch):
    monkeypatch.setenv("TUNELINE_API_KEY", "short")

    with pytest.raises(RecipeError, match="TUNELINE_API_KEY: expected at least 16"):
        key_file.read_keys(None)


def test_a_key_file_that_others_can_read_is_reported(write_keys, caplog):
    path = write_keys(f"web: {KEY}\n")
    path.chmod(0o644)

    assert key_file.read_keys(path)
    assert "can be read by all users" in caplog.text
