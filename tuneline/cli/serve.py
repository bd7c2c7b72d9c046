"""`tuneline serve`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tuneline.cli import show
from tuneline.errors import RecipeError

if TYPE_CHECKING:
    from tuneline.config.parsing.key_file import KeyEntry
    from tuneline.config.sections.serve import ServeConfig
    from tuneline.serve.deploy.deployment import RegistryDeployment
    from tuneline.serve.deploy.loaded import LoadedVersion

KEY_VARIABLE = "TUNELINE_API_KEY"
ACCESS_LOGGER = "tuneline.serve.access"
SETTINGS_SUFFIXES = (".yaml", ".yml", ".json")


def add_commands(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command()(serve)


ModelArgument = Annotated[
    str,
    typer.Argument(
        help="A registered model (demo@champion, demo/7, models:/demo@champion), a model or adapter folder, a "
        "checkpoint of a training run, a GGUF file, a catalogue name, a Hub repository, or a YAML file with settings "
        "of the server or of LlamaFactory's inference."
    ),
]
BaseOption = Annotated[str | None, typer.Option(help="Base model of an adapter or a checkpoint.")]
AdapterOption = Annotated[
    list[str] | None, typer.Option(help="Adapter that requests can select, NAME=PATH; may be repeated.")
]
ServedNameOption = Annotated[
    list[str] | None, typer.Option(help="Additional model name for requests; may be repeated.")
]
EngineOption = Annotated[str | None, typer.Option(help="Engine: transformers (default), vllm or llama_cpp.")]
EnginePythonOption = Annotated[Path | None, typer.Option(help="Python of the environment that has vLLM.")]
DtypeOption = Annotated[str | None, typer.Option(help="Data type of the weights: auto, float32, bfloat16 or float16.")]
BatchOption = Annotated[int | None, typer.Option(help="Requests that are decoded at the same time.")]
LengthOption = Annotated[int | None, typer.Option(help="Maximum number of tokens of prompt and answer.")]
TemplateOption = Annotated[
    str | None, typer.Option(help="Chat template of a model that is not registered: a name or a Jinja file.")
]
HostOption = Annotated[str | None, typer.Option(help="Address to listen on; default: 127.0.0.1.")]
PortOption = Annotated[int | None, typer.Option(help="Port to listen on, 0 for a free one; default: 8000.")]
KeyFileOption = Annotated[
    Path | None, typer.Option(help=f"File with API keys, `name: key` per line. {KEY_VARIABLE} adds one.")
]
AllowedHostOption = Annotated[list[str] | None, typer.Option(help="Additional Host header to accept; may be repeated.")]
AllowedOriginOption = Annotated[
    list[str] | None, typer.Option(help="Origin of a web page that may send requests; may be repeated.")
]
FollowOption = Annotated[
    float | None, typer.Option(help="Seconds between two look-ups of the alias; 0 serves one version.")
]
SwapOption = Annotated[
    str | None, typer.Option(help="When the alias moves: `beside` (default), or `restart` if memory is short.")
]
ShadowOption = Annotated[
    float | None, typer.Option(help="Share of requests that the challenger answers too, for comparison.")
]
CanaryOption = Annotated[Path | None, typer.Option(help="File with canary prompts, one per line.")]
LogPromptsOption = Annotated[bool | None, typer.Option(help="Write prompts to the access log.")]
RemoteCodeOption = Annotated[bool | None, typer.Option(help="Execute Python code from the model's repository.")]
PickleOption = Annotated[bool | None, typer.Option(help="Allow weights in pickle files.")]


def serve(
    model: ModelArgument,
    base: BaseOption = None,
    adapter: AdapterOption = None,
    served_name: ServedNameOption = None,
    engine: EngineOption = None,
    engine_python: EnginePythonOption = None,
    dtype: DtypeOption = None,
    max_batch_size: BatchOption = None,
    max_length: LengthOption = None,
    template: TemplateOption = None,
    host: HostOption = None,
    port: PortOption = None,
    key_file: KeyFileOption = None,
    allowed_host: AllowedHostOption = None,
    allowed_origin: AllowedOriginOption = None,
    follow: FollowOption = None,
    swap: SwapOption = None,
    shadow: ShadowOption = None,
    canary: CanaryOption = None,
    log_prompts: LogPromptsOption = None,
    trust_remote_code: RemoteCodeOption = None,
    allow_pickle: PickleOption = None,
) -> None:
    """Serve a model with an OpenAI-compatible API, and follow its alias in the registry."""
    changes = {
        "base": base,
        "adapters": _parse_adapters(adapter),
        "served_names": served_name,
        "engine": engine,
        "engine_python": _absolute(engine_python),
        "dtype": dtype,
        "max_batch_size": max_batch_size,
        "max_length": max_length,
        "template": template,
        "host": host,
        "port": port,
        "keys": _absolute(key_file),
        "allowed_hosts": allowed_host,
        "allowed_origins": allowed_origin,
        "follow": follow,
        "swap": swap,
        "shadow": shadow,
        "canary_prompts": _absolute(canary),
        "log_prompts": log_prompts,
        "trust_remote_code": trust_remote_code,
        "allow_pickle": allow_pickle,
    }
    config = read_config(model, {name: value for name, value in changes.items() if value not in (None, [], {})})
    run(config, read_keys(config))


def read_config(model: str, changes: dict[str, Any]) -> "ServeConfig":
    """Return the settings: options of the command replace those of the file, if `model` is one.

    Raises:
        RecipeError: The file or an option is invalid. One line per error.
    """
    from tuneline.config import llamafactory
    from tuneline.config.parsing import located_yaml, serve_file
    from tuneline.config.sections.serve import ServeConfig

    path = Path(model)
    if path.suffix in SETTINGS_SUFFIXES:
        if not llamafactory.is_llamafactory_config(path):
            return serve_file.read(path, **changes)
        imported = llamafactory.translate_serving(path, **changes)
        console = show.stderr_console()
        console.print(f"{path} is a LlamaFactory configuration.")
        for line in imported.report.lines():
            console.print(line, soft_wrap=True)
        return imported.config
    config, problems = located_yaml.validate(ServeConfig, {"model": model, **changes}, ())
    if problems or not isinstance(config, ServeConfig):
        raise RecipeError("\n".join(f"{_option(key)}{text}" for key, text in problems))
    return config


def read_keys(config: "ServeConfig") -> "dict[str, KeyEntry]":
    """Return the API keys; a server that other machines can reach needs one.

    Raises:
        RecipeError: There is none, or the file is invalid.
    """
    from tuneline.config.parsing import key_file

    keys = key_file.read_keys(config.keys)
    if not (keys or config.is_local):
        raise RecipeError(
            f"--host {config.host} can be reached from other machines, and there is no API key. Set --key-file or the "
            f"environment variable {KEY_VARIABLE}, or listen on 127.0.0.1."
        )
    return keys


def run(config: "ServeConfig", keys: "dict[str, KeyEntry]") -> None:
    """Load the model and serve it until a signal."""
    show.silence_logs()
    import asyncio

    console = show.stderr_console()
    status = show.status(f"Loading {config.model}", console)
    with status:
        _start_logging()
        from tuneline.serve import run as server
        from tuneline.serve.deploy import names

        if names.is_registered(config):
            from tuneline.zenml_integration import tracker

            tracker.connect()

        def report(deployment: "RegistryDeployment", loaded: "LoadedVersion") -> None:
            status.stop()
            for line in describe(deployment, loaded):
                console.print(line, soft_wrap=True)

        def announce(url: str) -> None:
            typer.echo(f"Listening on {url}/v1")

        name = asyncio.run(server.serve(config, keys, on_loaded=report, on_listening=announce))
    console.print(f"Stopped by {'Ctrl-C' if name == 'SIGINT' else name or 'the server'}; all answers have ended.")


def _start_logging() -> None:
    """Write the log of the server to standard error, with times; lines of the access log already have one."""
    import logging

    for name, layout in (("tuneline", "%(asctime)s %(levelname)s %(message)s"), (ACCESS_LOGGER, "%(message)s")):
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter(layout))
        logger = logging.getLogger(name)
        logger.setLevel(logging.INFO)
        logger.addHandler(handler)
        logger.propagate = False


def describe(deployment: "RegistryDeployment", loaded: "LoadedVersion") -> list[str]:
    """Return lines that describe what is served."""
    lines = [
        f"Serving {loaded.located.name}: {loaded.located.description}",
        f"  engine     {loaded.served.engine.name}, {loaded.served.engine.max_length} tokens of context",
        f"  prompts    {loaded.parity}",
        f"  canary     {loaded.canary.sentence()}",
        f"  identity   {loaded.served.fingerprint}, content hash {loaded.located.content_hash[:16]}",
    ]
    lines += [f"  name       {entry.id} -> {entry.resolved}" for entry in deployment.models()]
    if deployment.alias and deployment.config.follow:
        alias = deployment.alias
        lines.append(f"  follows    {alias.name}@{alias.version}, every {deployment.config.follow:g} s")
    if deployment.alias and deployment.config.shadow:
        lines.append(f"  shadow     {deployment.config.shadow:.0%} of requests, {deployment.shadow_path}")
    return lines


def _parse_adapters(texts: list[str] | None) -> dict[str, str]:
    adapters = {}
    for text in texts or ():
        name, separator, path = text.partition("=")
        if not (name and separator and path):
            raise RecipeError(f"--adapter {text!r}: expected NAME=PATH, like poet=saves/poet.")
        if name in adapters:
            raise RecipeError(f"--adapter {name} is given twice. Give each adapter a name of its own.")
        adapters[name] = path
    return adapters


def _absolute(path: Path | None) -> str | None:
    return str(path.absolute()) if path else None


def _option(key: tuple[str | int, ...]) -> str:
    """Return the option of a key of the settings, for error messages."""
    options = {"keys": "key-file", "canary_prompts": "canary", "served_names": "served-name", "adapters": "adapter"}
    if not key or key[0] == "model":
        return "MODEL: " if key else ""
    return f"--{options.get(str(key[0]), str(key[0]).replace('_', '-'))}: "
