"""`tuneline doctor`: check the installation, the device, the stack and the network."""

import platform
import socket
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any
from urllib.parse import urlsplit

import typer

from tuneline.cli import show
from tuneline.errors import TunelineError

PACKAGES = (
    "tuneline",
    "zenml",
    "mlflow",
    "torch",
    "transformers",
    "peft",
    "trl",
    "datasets",
    "bitsandbytes",
    "evaluate",
)
OPTIONAL = ("lm_eval", "vllm", "deepspeed", "liger-kernel", "galore-torch")
CONNECT_TIMEOUT_SECONDS = 3.0


def add_commands(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command()(doctor)


def doctor(as_json: show.JsonOption = False) -> None:
    """Check the installation, the device, the stack and the network; the exit code is 1 if a check fails."""
    show.silence_logs()
    results = [*_package_rows(), *_device_rows(), *_stack_rows(), *_network_rows()]
    show.print_rows("Doctor", results, ("check", "status", "detail"), as_json=as_json, empty="")
    if any(row["status"] == "failed" for row in results):
        raise typer.Exit(1)


def _row(check: str, status: str, detail: str) -> dict[str, Any]:
    return {"check": check, "status": status, "detail": detail}


def _package_rows() -> list[dict[str, Any]]:
    rows = [_row("python", "ok", platform.python_version())]
    for name in (*PACKAGES, *OPTIONAL):
        try:
            rows.append(_row(name, "ok", version(name)))
        except PackageNotFoundError:
            optional = name in OPTIONAL
            rows.append(
                _row(
                    name,
                    "absent" if optional else "failed",
                    "optional" if optional else "not installed; run `make install`",
                )
            )
    return rows


def _device_rows() -> list[dict[str, Any]]:
    import torch

    from tuneline.model import device, precision

    if device.device_type() != "cpu":
        return [_row("device", "ok", f"{device.device_name()}, {torch.accelerator.device_count()} in total")]
    dtype, reason = precision.benchmark_dtypes()
    capability = torch.backends.cpu.get_cpu_capability()
    return [
        _row("device", "ok", f"CPU, {torch.get_num_threads()} threads, {capability}"),
        _row("dtype", "ok", f"{dtype}: {reason}"),
    ]


def _stack_rows() -> list[dict[str, Any]]:
    from zenml.client import Client

    from tuneline import state
    from tuneline.tracking import ledger
    from tuneline.zenml_integration import abandoned_runs, stack, tracker

    rows = [_row("state root", "ok" if state.root().is_dir() else "absent", str(state.root()))]
    if not stack.is_ready():
        return [*rows, _row("stack", "absent", "run `tuneline init` in this folder")]
    rows.append(_row("stack", "ok", str(Client().active_stack_model.name)))
    checks: tuple[tuple[str, Callable[[], str]], ...] = (
        ("mlflow", tracker.connect),
        ("ledger", lambda: f"{ledger.verify()} lines, hashes match"),
        ("killed runs", lambda: "; ".join(abandoned_runs.close()) or "none"),
    )
    for name, check in checks:
        try:
            rows.append(_row(name, "ok", check()))
        except TunelineError as error:
            rows.append(_row(name, "failed", str(error)))
    return rows


def _network_rows() -> list[dict[str, Any]]:
    """Check the Hub, which is optional: catalogue models have other sources."""
    from huggingface_hub.constants import ENDPOINT

    host = urlsplit(ENDPOINT).hostname or ENDPOINT
    try:
        socket.create_connection((host, 443), timeout=CONNECT_TIMEOUT_SECONDS).close()
    except OSError as error:
        return [
            _row("model hub", "absent", f"{host} cannot be reached ({error}); models from wheels and directories work")
        ]
    return [_row("model hub", "ok", host)]
