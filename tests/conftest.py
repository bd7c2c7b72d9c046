"""Fixtures shared by every test; nothing here downloads a model, and no test touches the user's ZenML or state."""

import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models: a second thread would spin, not work
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.pop("ZENML_ACTIVE_STACK_ID", None)  # it would overwrite the active stack that a test chose

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # shells start background jobs like this
    signal.signal(signal.SIGINT, signal.default_int_handler)

if not hasattr(sys.modules["__main__"], "__file__"):  # a worker of pytest-xdist; ZenML needs the file of the program
    sys.modules["__main__"].__file__ = str(Path(pytest.__file__).with_name("__main__.py"))

from tests import tiny

DATA = "TUNELINE_TEST_DATA"
MAX_WORKERS = 8
"""Each test process holds torch, transformers, ZenML and MLflow: about 1.5 GB."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--matrix",
        choices=("sample", "rest", "whole"),
        default="sample",
        help="cases of tests marked `matrix`: each n-th (sample), the others (rest), or all (whole)",
    )


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    return min(os.cpu_count() or 1, MAX_WORKERS)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Select cases of exhaustive matrices by a fixed rule: the number of a case in its file, modulo `every`.

    `rest` selects the cases that `sample` leaves out. A matrix with `table=True` ends with tests that compare a table
    of all results, so `rest` selects the whole file.
    """
    mode = config.getoption("--matrix")
    numbers: dict[Path, int] = {}
    selected, deselected = [], []
    for item in items:
        marker = item.get_closest_marker("matrix")
        if marker is None or mode == "whole":
            selected.append(item)
            continue
        is_sampled = not hasattr(item, "callspec")
        if not is_sampled:
            number = numbers[item.path] = numbers.get(item.path, -1) + 1
            is_sampled = number % marker.kwargs["every"] == 0
        runs = is_sampled if mode == "sample" else not is_sampled or marker.kwargs.get("table", False)
        (selected if runs else deselected).append(item)
    if deselected:
        config.hook.pytest_deselected(items=deselected)
        items[:] = selected


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny chat model; do not write into it."""
    return tiny.build_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty state root."""
    monkeypatch.setenv("TUNELINE_HOME", str(tmp_path / "state"))
    return tmp_path / "state"


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of real data; tests that need it are skipped if the environment variable is not set."""
    if not os.environ.get(DATA):
        pytest.skip(f"{DATA} does not name the folder with the real data")
    return Path(os.environ[DATA])


@pytest.fixture(scope="session")
def project_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project around the tiny model; copy it before changing it."""
    return tiny.build_project(tmp_path_factory.mktemp("template") / "project")


@pytest.fixture(scope="session")
def zenml_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a ZenML configuration for this test session."""
    world = tmp_path_factory.mktemp("zenml")
    with pytest.MonkeyPatch.context() as env:
        env.setenv("ZENML_CONFIG_PATH", str(world))
        env.setenv("ZENML_LOGGING_VERBOSITY", "WARN")
        env.setenv("ZENML_ENABLE_RICH_TRACEBACK", "false")
        yield world


@pytest.fixture(scope="module")
def project(zenml_world: Path, project_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A project with the embedded stack active; the working directory of a module's tests."""
    from tuneline.zenml_integration import stack

    folder = tmp_path_factory.mktemp("project") / "it"
    shutil.copytree(project_template, folder)
    with pytest.MonkeyPatch.context() as env:
        env.delenv("TUNELINE_HOME", raising=False)
        env.chdir(folder)
        stack.init()
        yield folder
