"""Push an export to a repository of a hub: one commit, or none; each thing that can go wrong is told as what it is.

Who pushes is known by `HF_TOKEN` or by `hf auth login`, which `huggingface_hub` reads itself: a token is neither taken
nor kept nor shown here. `HF_ENDPOINT` names another hub.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuneline.config.sections.export import PushConfig
from tuneline.errors import DeliveryError
from tuneline.identity import FileEntry, file_entries

if TYPE_CHECKING:
    from huggingface_hub import HfApi

STALE_PATTERNS = ("*.safetensors", "*.safetensors.index.json", "*.bin", "*.bin.index.json")
"""Files of an earlier push that would be loaded in place of the new weights."""


def check_push(config: PushConfig) -> str:
    """Look whether a push can succeed, before anything is computed for it.

    Returns:
        The user's name on the hub.

    Raises:
        DeliveryError: The hub is out of reach, does not know the user, or has the repository in another form.
    """
    api = _api()
    with _translated_errors(config):
        user = str(api.whoami()["name"])
    _check_repository(api, config)
    return user


def push_folder(folder: Path, config: PushConfig, message: str) -> tuple[str, str]:
    """Push all files of a folder as one commit, and see that they are there.

    Args:
        folder: What `export` wrote.
        config: Where to.
        message: Of the commit, where the recipe gives none.

    Returns:
        The commit, and its address.

    Raises:
        DeliveryError: The hub does not take it, or has other bytes afterwards.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    api = _api()
    _check_repository(api, config)
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    names = {path.relative_to(folder).as_posix(): path for path in paths}
    with _translated_errors(config):
        api.create_repo(config.repo_id, private=config.private, exist_ok=config.exist_ok)
        if config.revision != "main":
            api.create_branch(config.repo_id, branch=config.revision, exist_ok=True)
        stale = [name for name in _list_files(api, config) if _is_stale(name) and name not in names]
        commit = api.create_commit(
            config.repo_id,
            [
                *(CommitOperationDelete(path_in_repo=name) for name in stale),
                *(CommitOperationAdd(path_in_repo=name, path_or_fileobj=path) for name, path in names.items()),
            ],
            commit_message=config.commit_message or message,
            revision=config.revision,
        )
        _verify_commit(api, config, str(commit.oid), file_entries(folder, paths))
    return str(commit.oid), str(commit.commit_url)


def _api() -> "HfApi":
    from huggingface_hub import HfApi

    return HfApi(library_name="tuneline")


def _check_repository(api: "HfApi", config: PushConfig) -> None:
    """Look at a repository that is there.

    Raises:
        DeliveryError: It is not to be there, or others see more of it than the recipe says.
    """
    from huggingface_hub.errors import RepositoryNotFoundError

    with _translated_errors(config):
        try:
            about = api.repo_info(config.repo_id)
        except RepositoryNotFoundError as error:
            if error.response is not None and error.response.status_code == 401:
                raise
            return
    if not config.exist_ok:
        raise DeliveryError(
            f"push.repo_id: {config.repo_id} is there already, and push.exist_ok is false. Choose another name, or set "
            "exist_ok: true to add a commit to it."
        )
    if config.private and not about.private:
        raise DeliveryError(
            f"push.private: {config.repo_id} is there and public, so everybody would see what is pushed. Set "
            "push.private: false if that is meant, or make the repository private."
        )


def _list_files(api: "HfApi", config: PushConfig) -> list[str]:
    return [str(name) for name in api.list_repo_files(config.repo_id, revision=config.revision)]


def _is_stale(name: str) -> bool:
    return any(Path(name).match(pattern) for pattern in STALE_PATTERNS)


def _verify_commit(api: "HfApi", config: PushConfig, commit: str, files: list[FileEntry]) -> None:
    """Ask the hub what it has at the commit.

    Raises:
        DeliveryError: A file is missing there, or is another one.
    """
    found: dict[str, Any] = {
        each.path: each for each in api.get_paths_info(config.repo_id, [file.name for file in files], revision=commit)
    }
    for file in files:
        there = found.get(file.name)
        lfs = getattr(there, "lfs", None)
        got = "nothing" if there is None else f"{there.size} bytes" + (f" with the hash {lfs.sha256}" if lfs else "")
        if there is None or there.size != file.size or (lfs and lfs.sha256 != file.sha256):
            raise DeliveryError(
                f"push: {config.repo_id} has {got} as {file.name} at commit {commit}, expected {file.size} bytes with "
                f"the hash {file.sha256}. Push again."
            )


@contextmanager
def _translated_errors(config: PushConfig) -> Iterator[None]:
    """Say in one sentence what a hub has against a push.

    Raises:
        DeliveryError: It has something against it.
    """
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

    try:
        yield
    except LocalTokenNotFoundError as error:
        raise DeliveryError(f"push: the hub does not know who you are. {LOGIN_ADVICE}") from error
    except HfHubHTTPError as error:
        raise DeliveryError(_http_error_message(config, error)) from error
    except OfflineModeIsEnabled as error:
        raise DeliveryError("push: HF_HUB_OFFLINE is set, so nothing can be pushed. Unset it.") from error
    except ValueError as error:
        raise DeliveryError(
            f"push: the hub does not take what is in the export: {' '.join(str(error).split())[:400]}. Nothing was "
            "committed."
        ) from error
    except (httpx2.HTTPError, OSError, RuntimeError) as error:
        if isinstance(error, DeliveryError):
            raise
        raise DeliveryError(
            f"push: {_endpoint()} is out of reach, or broke off: {_first_line(error)}. Nothing was committed. Try again; "
            "the export is kept."
        ) from error


LOGIN_ADVICE = "Set HF_TOKEN, or run `hf auth login`, with a token that may write."


def _http_error_message(config: PushConfig, error: Any) -> str:
    status = error.response.status_code if error.response is not None else 0
    said = str(getattr(error, "server_message", None) or "").strip() or _first_line(error)
    reasons = {
        401: f"push: {_endpoint()} does not accept your token (401: {said}). {LOGIN_ADVICE}",
        403: f"push.repo_id: you may not write to {config.repo_id} (403: {said}). Take a name of your own or of an "
        "organisation that lets you, or a token that may write.",
        404: f"push.repo_id: {config.repo_id} or its branch {config.revision} is not there for you (404: {said}). "
        "Correct the name, or take a token that sees it.",
        409: f"push.repo_id: {config.repo_id} is taken, or was changed meanwhile (409: {said}). Choose another name, "
        "or push again.",
    }
    return reasons.get(
        status, f"push: {_endpoint()} refused with {status}: {said}. Try again later; the export is kept."
    )


def _endpoint() -> str:
    from huggingface_hub import constants

    return str(constants.ENDPOINT)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:200].rstrip(".")
