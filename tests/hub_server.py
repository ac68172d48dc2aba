"""A server that answers as the Hugging Face Hub does, as far as downloads go: lists, redirects, ranges, and refusals.

Files lie behind a redirect, as the Hub's large ones do. What is sent of them is counted. It can be told to misbehave.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

#: What the ``hub`` of conftest.py has, a token for those that take one, and the files of its largest model.
REPO, TOKEN = "someone/tiny", "secret"
F32 = "F32/tiny-F32-0000{}-of-00003.gguf"
#: Files of a repository: where they are, or what they hold.
Files = Mapping[str, "Path | bytes"]


class Hub:
    """What it has, how it behaves, and what it was asked."""

    def __init__(self, repos: Mapping[str, Files]) -> None:
        self.repos = {name: dict(files) for name, files in repos.items()}
        #: Repositories that take this token: ("gated" are listed without it, "private" are not).
        self.gated: dict[str, str] = {}
        self.private: dict[str, str] = {}
        #: Files that are kept in chunks, too, as the Hub's large ones are: by which hash, and in which storage.
        self.xet: dict[str, str] = {}
        self.xet_storage = ""
        #: Called before a file is sent, with the handler, its name and its bytes; True: it has answered.
        self.misbehave: Callable[[Handler, str, bytes], bool] | None = None
        #: What is said instead of a list.
        self.list_status = 200
        self.list_body: bytes | None = None
        self.requests: list[str] = []
        self.sent = 0
        self.lock = threading.Lock()
        self.endpoint = self.cdn = ""

    def commit(self, repo: str) -> str:
        """Changes with the files."""
        told = repr([(name, self.size(repo, name)) for name in sorted(self.repos[repo])])
        return hashlib.sha1(told.encode(), usedforsecurity=False).hexdigest()

    def size(self, repo: str, name: str) -> int:
        file = self.repos[repo][name]
        return len(file) if isinstance(file, bytes) else file.stat().st_size

    def forget(self) -> None:
        """Count from nothing."""
        self.requests.clear()
        self.sent = 0


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        with self.hub.lock:
            self.hub.requests.append(f"{self.command} {path} {self.headers.get('Range', '')}".strip())
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            self.list(match[1], match[2])
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)(?:/(.+))?", path):
            self.tree(match[1], match[2], match[3])
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/(refs/pr/\d+|[^/]+)/(.+)", path):
            self.resolve(match[1], match[2], match[3])
        elif match := re.fullmatch(r"/cdn/([^/]+/[^/]+)/(.+)", path):
            self.content(match[1], match[2])
        elif path == "/xet-token" and self.hub.xet_storage:
            told = {"Cas-Url": self.hub.xet_storage, "Access-Token": TOKEN, "Token-Expiration": str(2**32)}
            self.reply(200, {f"X-Xet-{name}": value for name, value in told.items()})
        else:
            self.reply(404, {"X-Error-Code": "EntryNotFound"})

    def reply(self, status: int, headers: Mapping[str, str], body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def admitted(self, token: str | None) -> bool:
        return token is None or self.headers.get("Authorization") == f"Bearer {token}"

    def known(self, repo: str, revision: str | None) -> bool:
        """Whether there is such a revision; else it is answered that there is not."""
        hub = self.hub
        if repo not in hub.repos or not self.admitted(hub.private.get(repo)):
            self.reply(401 if "Authorization" not in self.headers else 404, {"X-Error-Code": "RepoNotFound"})
            return False
        if revision not in {None, "main", "refs/pr/7", hub.commit(repo)}:
            self.reply(404, {"X-Error-Code": "RevisionNotFound"})
            return False
        return True

    def list(self, repo: str, revision: str | None) -> None:
        hub = self.hub
        if hub.list_status != 200:
            self.reply(hub.list_status, {})
        elif self.known(repo, revision):
            files = [{"rfilename": name, "size": hub.size(repo, name)} for name in sorted(hub.repos[repo])]
            body = json.dumps({"id": repo, "sha": hub.commit(repo), "siblings": files}).encode()
            self.reply(200, {"Content-Type": "application/json"}, body if hub.list_body is None else hub.list_body)

    def resolve(self, repo: str, revision: str, name: str) -> None:
        hub = self.hub
        if not self.known(repo, revision):
            return
        headers = {"X-Repo-Commit": hub.commit(repo)}
        if not self.admitted(hub.gated.get(repo)):
            self.reply(401, {"X-Error-Code": "GatedRepo", **headers})
        elif name not in hub.repos[repo]:
            self.reply(404, {"X-Error-Code": "EntryNotFound", **headers})
        else:
            etag = hashlib.sha256(f"{repo}/{name}/{hub.size(repo, name)}".encode()).hexdigest()
            headers |= {"X-Linked-Size": str(hub.size(repo, name)), "X-Linked-Etag": f'"{etag}"', "ETag": f'"{etag}"'}
            if name in hub.xet:
                headers |= {"X-Xet-Hash": hub.xet[name], "X-Xet-Refresh-Route": f"{hub.endpoint}/xet-token"}
            self.reply(302, {"Location": f"{hub.cdn}/cdn/{quote(f'{repo}/{name}')}", **headers})

    def content(self, repo: str, name: str) -> None:
        file, whole = self.hub.repos[repo][name], self.hub.size(repo, name)
        first, last, status, headers = 0, whole - 1, 200, {"Accept-Ranges": "bytes"}
        if match := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last, status = int(match[1]), min(int(match[2] or whole), whole - 1), 206
            headers["Content-Range"] = f"bytes {first}-{last}/{whole}"
            if first >= whole:
                self.reply(416, {"Content-Range": f"bytes */{whole}"})
                return
        if isinstance(file, bytes):
            data = file[first : last + 1]
        else:
            with file.open("rb") as opened:
                opened.seek(first)
                data = opened.read(last + 1 - first)
        if self.hub.misbehave is None or not self.hub.misbehave(self, name, data):
            with self.hub.lock:
                self.hub.sent += len(data)
            self.reply(status, headers, data)

    def tree(self, repo: str, revision: str, folder: str | None) -> None:
        """What is in a folder; it has no folders of its own here."""
        hub, prefix = self.hub, f"{folder}/" if folder else ""
        if self.known(repo, revision):
            files = [name for name in hub.repos[repo] if name.startswith(prefix) and "/" not in name[len(prefix) :]]
            listed = [{"type": "file", "path": name, "size": hub.size(repo, name), "oid": "0" * 40} for name in files]
            self.reply(200, {"Content-Type": "application/json"}, json.dumps(listed).encode())

    def drop(self) -> None:
        """Hang up, as a server that crashes does."""
        self.close_connection = True
        self.connection.shutdown(2)

    def half(self, data: bytes) -> None:
        """Promise all of it, send the half, and hang up."""
        self.send_response(206 if "Range" in self.headers else 200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[: len(data) // 2])
        self.wfile.flush()
        self.drop()


class Server(ThreadingHTTPServer):
    """Ends whatever its clients do."""

    daemon_threads = True
    block_on_close = False

    def handle_error(self, *_: object) -> None:
        """Clients hang up too."""


@contextmanager
def serving(repos: Mapping[str, Files]) -> Iterator[Hub]:
    """A hub on 127.0.0.1, and its large files on another host; its address is what belongs into HF_ENDPOINT."""
    hub = Hub(repos)
    handler = type("HubHandler", (Handler,), {"hub": hub})
    with Server(("127.0.0.1", 0), handler) as first, Server(("127.0.0.2", 0), handler) as second:
        hub.endpoint = f"http://127.0.0.1:{first.server_port}"
        hub.cdn = f"http://127.0.0.2:{second.server_port}"
        threads = [
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
            for server in (first, second)
        ]
        for thread in threads:
            thread.start()
        try:
            yield hub
        finally:
            for server in (first, second):
                server.shutdown()
            for thread in threads:
                thread.join()


def cached(tmp_path: Path) -> list[str]:
    """Names of files in the cache that are whole."""
    return sorted(path.name for path in (tmp_path / "cache").rglob("snapshots/*/**/*.gguf"))


def child(program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a program in a process of its own, which reads the environment when it imports huggingface_hub."""
    body = "import moebind\nfrom moebind import Model, ModelParams\n" + textwrap.dedent(program)
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", body],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )
