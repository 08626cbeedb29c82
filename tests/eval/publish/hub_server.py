"""A stand-in for the Hugging Face Hub on loopback, as far as uploads need it.

It speaks what `huggingface_hub` sends: repositories, branches, the choice of how a file is stored
(preupload), the LFS batch with uploads by PUT, and commits. Files are kept in memory.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_" + "standin" * 5
LFS_BYTES = 5_000
"""Files from this size on are stored as LFS objects, as are all files of weights."""
Files = dict[str, tuple[str, bytes]]
"""Oid and content of files by name."""


class Repo:
    """A repository: its branches, each a list of commits with a title and the files after it."""

    def __init__(self, private: bool) -> None:
        self.private = private
        self.branches: dict[str, list[tuple[str, str, Files]]] = {}
        self.commit("main", "initial commit", {".gitattributes": ("0", b"")})

    def commit(self, branch: str, title: str, files: Files) -> str:
        history = self.branches.setdefault(branch, [])
        oid = hashlib.sha1(f"{branch} {len(history)} {title}".encode()).hexdigest()
        history.append((oid, title, files))
        return oid

    def files(self, branch: str) -> Files:
        return self.branches[branch][-1][2]

    def titles(self, branch: str) -> list[str]:
        return [title for _, title, _ in self.branches[branch]]


class HubServer:
    """The server.

    Attributes:
        repos: Repositories by owner and name.
        objects: LFS objects by their sha256.
        received: The sha256 of each object that was uploaded, in order.
        refuse: Number of the next request of a kind that fails, as (method and part of the path,
            how many of them succeed before).
        requests: Number of requests.
    """

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.objects: dict[str, bytes] = {}
        self.received: list[str] = []
        self.refuse: tuple[str, int] | None = None
        self.requests = 0
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                pass

            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                status, content = server.answer(
                    self.command, unquote(urlsplit(self.path).path), body, self.headers
                )
                data = json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = do_PUT = answer

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._lock = threading.Lock()
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, method: str, path: str, body: bytes, headers: Any) -> tuple[int, Any]:
        """Returns status and content of the answer to a request."""
        with self._lock:
            self.requests += 1
            if self.refuse and self.refuse[0] in f"{method} {path}":
                kind, left = self.refuse
                self.refuse = (kind, left - 1) if left else None
                if not left:
                    return 418, {"error": "interrupted"}
            if not path.startswith("/objects/") and headers["Authorization"] != f"Bearer {TOKEN}":
                return 401, {"error": "Invalid credentials"}
            if method == "PUT":
                return self._put(path.removeprefix("/objects/"), body)
            if path.endswith(".git/info/lfs/objects/batch"):
                return 200, self._batch(json.loads(body))
            if path == "/api/validate-yaml":
                return self._validate(json.loads(body)["content"])
            if path == "/api/repos/create":
                return self._create(json.loads(body))
            owner, name, *rest = path.removeprefix("/api/models/").split("/")
            if f"{owner}/{name}" not in self.repos:
                return 404, {"error": "Repository not found"}
            repo = self.repos[f"{owner}/{name}"]
            return self._in_repo(f"{owner}/{name}", repo, method, rest, body)

    def _create(self, asked: dict[str, Any]) -> tuple[int, Any]:
        name = f"{asked.get('organization') or 'me'}/{asked['name']}"
        if name in self.repos:
            return 409, {"error": "You already created this model repo", "url": name}
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        self.repos[name] = Repo(private)
        return 200, {"url": f"{self.endpoint}/{name}"}

    def _validate(self, card: str) -> tuple[int, Any]:
        bad = "license: no such license" in card
        errors = [{"message": '"license" must be one of a list'}] if bad else []
        return (400 if bad else 200), {"errors": errors, "warnings": []}

    def _put(self, oid: str, content: bytes) -> tuple[int, Any]:
        if hashlib.sha256(content).hexdigest() != oid:
            return 400, {"error": "the content does not have this hash"}
        self.objects[oid] = content
        self.received.append(oid)
        return 200, {}

    def _batch(self, asked: dict[str, Any]) -> dict[str, Any]:
        objects = []
        for found in asked["objects"]:
            entry = {"oid": found["oid"], "size": found["size"]}
            if found["oid"] not in self.objects:
                entry["actions"] = {"upload": {"href": f"{self.endpoint}/objects/{found['oid']}"}}
            objects.append(entry)
        return {"transfer": "basic", "objects": objects}

    def _in_repo(
        self, name: str, repo: Repo, method: str, rest: list[str], body: bytes
    ) -> tuple[int, Any]:
        what, branch = (rest or [""])[0], "/".join(rest[1:]) or "main"
        if what == "branch":
            if branch in repo.branches:
                return 409, {"error": "Reference already exists"}
            start = json.loads(body).get("startingPoint")
            history = next(h for h in repo.branches.values() if start in [c[0] for c in h])
            repo.branches[branch] = history[: [c[0] for c in history].index(start) + 1]
            return 200, {}
        if branch not in repo.branches:
            return 404, {"error": "Invalid rev id"}
        if method == "GET" and what in ("", "revision"):
            sha = repo.branches[branch][-1][0]
            return 200, {"id": name, "private": repo.private, "sha": sha, "siblings": []}
        if what == "commits":
            listed = [
                {"id": oid, "authors": [], "date": "2026-01-01T00:00:00.000Z", "title": title}
                | {"message": ""}
                for oid, title, _ in reversed(repo.branches[branch])
            ]
            return 200, listed
        if what == "preupload":
            return 200, {"files": [_mode(f, repo.files(branch)) for f in json.loads(body)["files"]]}
        assert (method, what) == ("POST", "commit"), (method, rest)
        return self._commit(name, branch, [json.loads(line) for line in body.splitlines()])

    def _commit(self, name: str, branch: str, lines: list[dict[str, Any]]) -> tuple[int, Any]:
        repo = self.repos[name]
        files = dict(repo.files(branch))
        title = ""
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                title = value["summary"]
            elif line["key"] == "file":
                content = base64.b64decode(value["content"])
                files[value["path"]] = (blob(content), content)
            elif value["oid"] not in self.objects:
                return 400, {"error": f"no LFS object {value['oid']}"}
            else:
                files[value["path"]] = (value["oid"], self.objects[value["oid"]])
        oid = repo.commit(branch, title, files)
        return 200, {"commitUrl": f"{self.endpoint}/{name}/commit/{oid}", "commitOid": oid}


def blob(content: bytes) -> str:
    """Returns the id of a file in git."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _mode(asked: dict[str, Any], files: Files) -> dict[str, Any]:
    """Returns how a file is stored, with its id if the branch has one of this name."""
    is_weights = asked["path"].endswith((".safetensors", ".gguf"))
    mode = "lfs" if is_weights or asked["size"] >= LFS_BYTES else "regular"
    found = files.get(asked["path"])
    return {
        "path": asked["path"],
        "uploadMode": mode,
        "shouldIgnore": False,
        "oid": found[0] if found else None,
    }


@contextmanager
def running() -> Iterator[HubServer]:
    """A server for the block."""
    server = HubServer()
    try:
        yield server
    finally:
        server.close()
