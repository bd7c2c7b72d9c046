"""The embedded stack: artifacts, MLflow and its registry under the state root, and a local orchestrator with schedules.

It is registered in the ZenML store of the user and activated for one folder only, by the folder's `.zen/config.yaml`;
other folders keep their stack. Its name contains an id from the state root, so that a state root that was deleted and
created again never reuses cache entries of the old one.
"""

import contextlib
import json
import uuid
from pathlib import Path
from typing import Any

from filelock import FileLock

from tuneline import filesystem, state
from tuneline.errors import NotFoundError, TrackingError

STACK_FILE = "stack.json"
PAGE_SIZE = 1000
"""Number of rows per request to ZenML."""


def init(existing: str | None = None) -> str:
    """Activate the embedded stack, or an existing one, for this folder; idempotent.

    Args:
        existing: Name of an existing stack.

    Returns:
        Name of the active stack.

    Raises:
        NotFoundError: No stack is named `existing`.
    """
    with _init_lock():
        from zenml.client import Client
        from zenml.utils.pagination_utils import depaginate

        _disable_analytics()
        state.root().mkdir(parents=True, exist_ok=True)
        folder = _folder()
        if not Client.is_repository_directory(folder):
            Client.initialize(folder)
        client = Client()
        client.activate_root(folder)
        _update_flavor(client)
        name = existing or _ensure(client)
        names = [stack.name for stack in depaginate(client.list_stacks, size=PAGE_SIZE)]
        if name not in names:
            raise NotFoundError.among("stack", name, names)
        if client.active_stack_model.name != name:
            client.activate_stack(name)
        return name


def is_ready() -> bool:
    """Return whether a stack is active for this folder and its artifact store exists."""
    from zenml.client import Client

    root = Client.find_repository()
    if root is None:
        return False
    open_store()
    store = Client().active_stack.artifact_store
    return not store.config.is_local or Path(store.path).is_dir()


def open_store() -> None:
    """Open ZenML's store under a lock: create its tables on the first use, update entries of earlier releases."""
    with _init_lock():
        from zenml.client import Client

        _disable_analytics()
        client = Client()
        _ = client.zen_store
        _update_flavor(client)


def _init_lock() -> FileLock:
    """Return the lock for ZenML's first start, which fails if two processes create the database at the same time."""
    folder = _zenml_folder()
    folder.mkdir(parents=True, exist_ok=True)
    return FileLock(folder / "tuneline-init.lock", timeout=600)


def _zenml_folder() -> Path:
    from zenml.utils.io_utils import get_global_config_directory

    return Path(get_global_config_directory())


def _disable_analytics() -> None:
    """Disable analytics at ZenML's first start; an existing setting is kept."""
    if (_zenml_folder() / "config.yaml").exists():
        return
    from zenml.config.global_config import GlobalConfiguration

    GlobalConfiguration().analytics_opt_in = False


def _folder() -> Path:
    """Return the folder of the stack: that of the state root in a checkout, else the working directory."""
    root, here = state.root(), Path.cwd()
    in_checkout = root.name == ".tuneline" and here.is_relative_to(root.parent)
    return root.parent if in_checkout else here


def _ensure(client: Any) -> str:
    from zenml.enums import StackComponentType as Kind
    from zenml.exceptions import EntityExistsError

    from tuneline.zenml_integration import orchestrator

    name = _name()
    store = state.folder("artifacts")
    with contextlib.suppress(EntityExistsError):
        client.create_flavor(_flavor_source(), Kind.ORCHESTRATOR)
    components_by_kind: dict[Kind, tuple[str, dict[str, Any]]] = {
        Kind.ORCHESTRATOR: (orchestrator.FLAVOR, {}),
        Kind.ARTIFACT_STORE: ("local", {"path": str(store)}),
        Kind.EXPERIMENT_TRACKER: ("mlflow", {}),
        Kind.MODEL_REGISTRY: ("mlflow", {}),
    }
    components = {
        kind: _component(client, name, kind, flavor, config) for kind, (flavor, config) in components_by_kind.items()
    }
    try:
        client.get_stack(name)
    except KeyError:
        client.create_stack(name, components)
    return name


def _flavor_source() -> str:
    from tuneline.zenml_integration import orchestrator

    return f"{orchestrator.__name__}.ScheduledLocalOrchestratorFlavor"


def _update_flavor(client: Any) -> None:
    """Update the source of a flavor that an earlier release registered."""
    from zenml.models import FlavorUpdate

    from tuneline.zenml_integration import orchestrator

    for flavor in client.list_flavors(name=orchestrator.FLAVOR):
        if flavor.source != _flavor_source():
            client.zen_store.update_flavor(flavor.id, FlavorUpdate(source=_flavor_source()))


def _component(client: Any, name: str, kind: Any, flavor: str, config: dict[str, Any]) -> Any:
    try:
        return client.get_stack_component(kind, name).id
    except KeyError:
        return client.create_stack_component(name=name, flavor=flavor, component_type=kind, configuration=config).id


def _name() -> str:
    path = state.root() / STACK_FILE
    if not path.exists():
        filesystem.write_atomic(path, json.dumps({"stack": f"tuneline-{uuid.uuid4().hex[:8]}"}))
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["stack"])
    except (ValueError, LookupError, TypeError) as error:
        raise TrackingError(
            f"{path} is damaged ({error}), so the stack of this state root is unknown. Restore its name, as `zenml "
            'stack list` shows it: {"stack": "tuneline-..."}. Or delete the file and run `tuneline init`: a new '
            "stack, in which every step runs again."
        ) from error
