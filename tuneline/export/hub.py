"""Push an export to a Hub repository in a single commit, with a specific message for each kind of failure.

The credentials are `HF_TOKEN` or `hf auth login`, which `huggingface_hub` reads itself: this module does not read,
store or print tokens. `HF_ENDPOINT` selects another Hub.
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
"""Files of an earlier push that would be loaded instead of the new weights."""


def check_push(config: PushConfig) -> str:
    """Check that a push can succeed, before the export is computed.

    Returns:
        The user name on the Hub.

    Raises:
        DeliveryError: The Hub is unreachable, the user is not logged in, or the repository has other settings.
    """
    api = _api()
    with _translated_errors(config):
        user = str(api.whoami()["name"])
    _check_repository(api, config)
    return user


def push_folder(folder: Path, config: PushConfig, message: str) -> tuple[str, str]:
    """Push all files of a folder as one commit and verify the result.

    Args:
        folder: Output of `export_model`.
        config: Repository and options.
        message: Commit message unless the recipe has one.

    Returns:
        The commit hash and its URL.

    Raises:
        DeliveryError: The Hub rejects the push, or its files differ afterwards.
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
    """Check an existing repository.

    Raises:
        DeliveryError: The repository must not exist, or is public although the recipe says private.
    """
    from huggingface_hub.errors import RepositoryNotFoundError

    with _translated_errors(config):
        try:
            info = api.repo_info(config.repo_id)
        except RepositoryNotFoundError as error:
            if error.response is not None and error.response.status_code == 401:
                raise
            return
    if not config.exist_ok:
        raise DeliveryError(
            f"push.repo_id: {config.repo_id} already exists, and push.exist_ok is false. Choose another name, or set "
            "exist_ok: true to add a commit to it."
        )
    if config.private and not info.private:
        raise DeliveryError(
            f"push.private: {config.repo_id} already exists and is public, so everybody would see the pushed files. "
            "Set push.private: false if this is intended, or make the repository private."
        )


def _list_files(api: "HfApi", config: PushConfig) -> list[str]:
    return [str(name) for name in api.list_repo_files(config.repo_id, revision=config.revision)]


def _is_stale(name: str) -> bool:
    return any(Path(name).match(pattern) for pattern in STALE_PATTERNS)


def _verify_commit(api: "HfApi", config: PushConfig, commit: str, files: list[FileEntry]) -> None:
    """Compare the files of a commit with the pushed files.

    Raises:
        DeliveryError: A file is missing or differs.
    """
    infos = api.get_paths_info(config.repo_id, [file.name for file in files], revision=commit)
    infos_by_path: dict[str, Any] = {info.path: info for info in infos}
    for file in files:
        info = infos_by_path.get(file.name)
        lfs = getattr(info, "lfs", None)
        actual = "nothing" if info is None else f"{info.size} bytes" + (f" with the hash {lfs.sha256}" if lfs else "")
        if info is None or info.size != file.size or (lfs and lfs.sha256 != file.sha256):
            raise DeliveryError(
                f"push: {config.repo_id} has {actual} for {file.name} at commit {commit}, expected {file.size} bytes "
                f"with the hash {file.sha256}. Push again."
            )


@contextmanager
def _translated_errors(config: PushConfig) -> Iterator[None]:
    """Translate Hub errors within the context into one-sentence messages.

    Raises:
        DeliveryError: A request to the Hub failed.
    """
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

    try:
        yield
    except LocalTokenNotFoundError as error:
        raise DeliveryError(f"push: you are not logged in to the Hub. {LOGIN_ADVICE}") from error
    except HfHubHTTPError as error:
        raise DeliveryError(_http_error_message(config, error)) from error
    except OfflineModeIsEnabled as error:
        raise DeliveryError("push: HF_HUB_OFFLINE is set, which disables pushing. Unset it.") from error
    except ValueError as error:
        raise DeliveryError(
            f"push: the Hub rejects the contents of the export: {' '.join(str(error).split())[:400]}. Nothing was "
            "committed."
        ) from error
    except (httpx2.HTTPError, OSError, RuntimeError) as error:
        if isinstance(error, DeliveryError):
            raise
        raise DeliveryError(
            f"push: {_endpoint()} is unreachable or closed the connection: {_first_line(error)}. Nothing was "
            "committed. Try again; the export is not deleted."
        ) from error


LOGIN_ADVICE = "Set HF_TOKEN, or run `hf auth login`, with a token that has write permission."


def _http_error_message(config: PushConfig, error: Any) -> str:
    status = error.response.status_code if error.response is not None else 0
    message = str(getattr(error, "server_message", None) or "").strip() or _first_line(error)
    reasons = {
        401: f"push: {_endpoint()} rejects your token (401: {message}). {LOGIN_ADVICE}",
        403: f"push.repo_id: you have no write permission for {config.repo_id} (403: {message}). Use a repository of "
        "your account or organization, or a token with write permission.",
        404: f"push.repo_id: {config.repo_id} or its branch {config.revision} was not found with your token (404: "
        f"{message}). Correct the name, or use a token with access to it.",
        409: f"push.repo_id: {config.repo_id} already exists, or was changed during the push (409: {message}). Choose "
        "another name, or push again.",
    }
    return reasons.get(
        status, f"push: {_endpoint()} returned {status}: {message}. Try again later; the export is not deleted."
    )


def _endpoint() -> str:
    from huggingface_hub import constants

    return str(constants.ENDPOINT)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:200].rstrip(".")
