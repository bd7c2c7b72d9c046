"""A hub in a thread: the endpoints through which `datasets` and `huggingface_hub` read datasets and models."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import parse_qs, unquote, urlsplit

import datasets
import huggingface_hub
import pytest

COMMIT = "a" * 40


@dataclass
class DataHub:
    """Files by repository; every revision is the same commit, except those that `tag` adds."""

    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    """Files of datasets."""

    models: dict[str, dict[str, bytes]] = field(default_factory=dict)
    commit: str = COMMIT
    requests: list[str] = field(default_factory=list)
    down: bool = False
    """Refuse all requests except those for the commit of a revision."""

    tags: dict[tuple[str, str], tuple[str, dict[str, bytes]]] = field(default_factory=dict)

    def tag(self, name: str, revision: str, commit: str, files: dict[str, bytes]) -> None:
        """Add a commit with other files to a repository, under its revision and its id."""
        for key in (revision, commit):
            self.tags[name, key] = commit, files


@contextmanager
def serve(patch: pytest.MonkeyPatch) -> Iterator[DataHub]:
    """Start the server and make both libraries connect to it."""
    hub = DataHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Handler,), {"hub": hub}))
    url = f"http://127.0.0.1:{server.server_port}"
    patch.setattr(huggingface_hub.constants, "ENDPOINT", url)
    patch.setattr(
        huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    patch.setattr(datasets.config, "HF_ENDPOINT", url)
    patch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    patch.setattr(
        datasets.config, "HUB_DATASETS_URL", url + "/datasets/{repo_id}/resolve/{revision}/{path}", raising=False
    )
    patch.setattr(huggingface_hub.hf_api.api, "endpoint", url)
    huggingface_hub.HfFileSystem.clear_instance_cache()
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        huggingface_hub.HfFileSystem.clear_instance_cache()


class Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    hub: DataHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_) -> None:
        """Log nothing."""

    def do_GET(self) -> None:
        self._route()

    def do_HEAD(self) -> None:
        self._route()

    def do_POST(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self._route()

    def _route(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        repository_names = {
            **{f"datasets/{name}": name for name in self.hub.repositories},
            **{name: name for name in self.hub.models},
        }
        key = next((key for key in repository_names if f"/{key}/" in f"{path}/"), None)
        if key is None:
            return self._answer(b'{"error": "Repository not found"}', 404, {"X-Error-Code": "RepoNotFound"})
        name, rest = repository_names[key], path.partition(key)[2].strip("/").split("/")
        files = (self.hub.models if key == name else self.hub.repositories)[name]
        self.commit, files = self.hub.tags.get((name, "".join(rest[1:2])), (self.hub.commit, files))
        is_api = path.startswith("/api/")
        if is_api and rest[0] in ("", "revision"):
            return self._repository_info(name, files)
        if self.hub.down:
            return self._answer(b'{"error": "not now"}', 403)
        if is_api:
            return self._entries(files, rest)
        content = files.get("/".join(rest[2:]))
        if content is None:
            return self._answer(b"", 404, {"X-Error-Code": "EntryNotFound"})
        return self._answer(
            content, 200, {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": self.commit}
        )

    def _repository_info(self, name: str, files: dict[str, bytes]) -> None:
        siblings = [{"rfilename": file} for file in files]
        info = {"id": name, "sha": self.commit, "private": False, "siblings": siblings}
        self._answer(json.dumps({**info, "cardData": {"license": "mit"}}).encode())

    def _entries(self, files: dict[str, bytes], rest: list[str]) -> None:
        if rest[0] == "paths-info":
            paths = parse_qs(self.body.decode())["paths"]
            entries = [self._entry(files, path) for path in paths if self._exists(files, path)]
            return self._answer(json.dumps(entries).encode())
        folder = "/".join(rest[2:])
        prefix = f"{folder}/" if folder else ""
        children = {
            path if "recursive=True" in self.path else prefix + path.removeprefix(prefix).split("/")[0]
            for path in files
            if path.startswith(prefix)
        }
        if not children:
            return self._answer(b"{}", 404, {"X-Error-Code": "EntryNotFound"})
        return self._answer(json.dumps([self._entry(files, path) for path in sorted(children)]).encode())

    def _exists(self, files: dict[str, bytes], path: str) -> bool:
        return path in files or any(file.startswith(f"{path}/") for file in files)

    def _entry(self, files: dict[str, bytes], path: str) -> dict:
        oid = hashlib.sha1(files.get(path, path.encode())).hexdigest()
        if path not in files:
            return {"type": "directory", "path": path, "size": 0, "oid": oid}
        return {"type": "file", "path": path, "size": len(files[path]), "oid": oid}

    def _answer(self, content: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        byte_range = self.headers.get("Range")
        if byte_range and status == 200 and headers:
            first, _, last = byte_range.removeprefix("bytes=").partition("-")
            end = int(last) + 1 if last else len(content)
            headers["Content-Range"] = f"bytes {first}-{min(end, len(content)) - 1}/{len(content)}"
            content, status = content[int(first) : end], 206
        self.send_response(status)
        for name, value in ({"Content-Type": "application/json"} | (headers or {})).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
