"""A hub in a thread: the endpoints through which `huggingface_hub` creates repositories and commits to them."""

import base64
import hashlib
import json
import re
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_test_token_of_nobody"


@dataclass
class Repository:
    """Branches with their files, and visibility."""

    private: bool
    branches: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"main": {}})
    commits: list[tuple[str, str]] = field(default_factory=list)
    """Id and message."""

    by_lfs: set[str] = field(default_factory=set)


class Hub:
    """A context manager; `fail` maps the beginning of `METHOD /path` to a status and a message."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.uploads: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.fail: dict[str, tuple[int, str]] = {}
        self.lose = ""
        """Name of a file that is lost in a commit."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "Hub":
        Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self.stop()

    def stop(self) -> None:
        """Stop the server."""
        self._server.shutdown()
        self._server.server_close()


class Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_) -> None:
        """Log nothing."""

    def do_GET(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def do_PUT(self) -> None:
        self._serve()

    def _serve(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        request = f"{self.command} {path}"
        self.hub.requests.append(request)
        for beginning, (status, message) in self.hub.fail.items():
            if request.startswith(beginning):
                return self._answer({"error": message}, status)
        is_storage = path.startswith("/storage/")
        if not is_storage and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._answer({"error": "Invalid credentials in Authorization header"}, 401)
        return self._route(path)

    def _route(self, path: str) -> None:
        if path == "/api/whoami-v2":
            return self._answer({"name": "tester", "type": "user", "orgs": [], "auth": {"type": "access_token"}})
        if path == "/api/validate-yaml":
            invalid = re.search(r"^license: .* .*$", json.loads(self.body)["content"], re.MULTILINE)
            errors = [{"message": f"{invalid[0]} is no licence"}] if invalid else []
            return self._answer({"errors": errors, "warnings": []}, 400 if invalid else 200)
        if path == "/api/repos/create":
            return self._create()
        if path.startswith("/storage/"):
            self.hub.uploads[path.removeprefix("/storage/")] = self.body
            return self._answer({})
        if path.endswith(".git/info/lfs/objects/batch"):
            return self._batch()
        parts = path.removeprefix("/api/models/").split("/")
        repository = self.hub.repositories.get("/".join(parts[:2]))
        if repository is None:
            return self._answer({"error": "Repository not found"}, 404, code="RepoNotFound")
        endpoint = parts[2] if len(parts) > 2 else "info"
        return getattr(self, f"_{endpoint.replace('-', '_')}")(repository, "/".join(parts[:2]), "/".join(parts[3:]))

    def _create(self) -> None:
        options = json.loads(self.body)
        name = f"{options.get('organization') or 'tester'}/{options['name']}"
        url = f"{self.hub.url}/{name}"
        if name in self.hub.repositories:
            return self._answer({"error": "You already created this model repo", "url": url}, 409)
        self.hub.repositories[name] = Repository(options.get("visibility") == "private" or bool(options.get("private")))
        return self._answer({"url": url, "name": name, "id": "1"})

    def _info(self, repository: Repository, name: str, _: str) -> None:
        self._answer({"id": name, "modelId": name, "private": repository.private, "sha": "0" * 40, "siblings": []})

    def _branch(self, repository: Repository, _: str, branch: str) -> None:
        if branch in repository.branches:
            return self._answer({"error": "Reference already exists"}, 409)
        repository.branches[branch] = dict(repository.branches["main"])
        return self._answer({})

    def _tree(self, repository: Repository, _: str, revision: str) -> None:
        self._answer(
            [self._entry(repository, path, content) for path, content in self._files(repository, revision).items()]
        )

    def _paths_info(self, repository: Repository, _: str, revision: str) -> None:
        files = self._files(repository, revision)
        paths = parse_qs(self.body.decode())["paths"]
        self._answer([self._entry(repository, path, files[path]) for path in paths if path in files])

    def _files(self, repository: Repository, revision: str) -> dict[str, bytes]:
        return repository.branches.get(revision) or repository.branches[self._branch_of(repository, revision)]

    def _branch_of(self, repository: Repository, revision: str) -> str:
        return next((name for name, _ in repository.commits if name == revision), "main")

    def _entry(self, repository: Repository, path: str, content: bytes) -> dict:
        entry = {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
        if path in repository.by_lfs:
            sha256 = hashlib.sha256(content).hexdigest()
            entry["lfs"] = {"oid": sha256, "size": len(content), "pointerSize": 130}
        return entry

    def _preupload(self, *_) -> None:
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                "shouldIgnore": False,
            }
            for file in json.loads(self.body)["files"]
        ]
        self._answer({"files": files})

    def _batch(self) -> None:
        objects = [
            {**upload, "actions": {"upload": {"href": f"{self.hub.url}/storage/{upload['oid']}", "header": {}}}}
            for upload in json.loads(self.body)["objects"]
        ]
        self._answer({"transfer": "basic", "objects": objects})

    def _commit(self, repository: Repository, name: str, branch: str) -> None:
        lines = [json.loads(line) for line in self.body.splitlines()]
        files = repository.branches[branch]
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "deletedFile":
                files.pop(value["path"])
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            else:
                repository.by_lfs.add(value["path"])
                files[value["path"]] = self.hub.uploads[value["oid"]]
        files.pop(self.hub.lose, None)
        commit = hashlib.sha1(self.body).hexdigest()
        repository.branches[commit] = dict(files)
        repository.commits.append((commit, lines[0]["value"]["summary"]))
        self._answer({"commitUrl": f"{self.hub.url}/{name}/commit/{commit}", "commitOid": commit, "success": True})

    def _answer(self, content: dict | list, status: int = 200, code: str = "") -> None:
        text = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        if status >= 400:
            self.send_header("X-Error-Message", str(content.get("error", "")))
        if code:
            self.send_header("X-Error-Code", code)
        self.end_headers()
        self.wfile.write(text)
