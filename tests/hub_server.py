"""A Hub on loopback: a real HTTP server with the calls that huggingface_hub makes, and faults on demand.

`/api/{models,datasets,spaces}/ID[/revision/REV]`, `/ID/resolve/REV/FILE` (HEAD and GET, large files by a
redirect to `/cdn` on another host name, which must not get the token), `/refs`, ranges, checksums, gates, and
a copy of GitHub's raw files. Repositories that are no models have their type before them: "datasets/a/b".
"""

import hashlib
import json
import os
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

LARGE = 1 << 10  # bytes; larger files, and all weights, are in LFS
HEAD_OF_MAIN = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Fault:
    """What goes wrong with a file (or, with the name "api", with the description), and how often."""

    kind: str  # a status such as "429", or: drop, truncate, corrupt, more, size, page, ignore-range, reset
    times: int = 1
    after: int = 0  # bytes that are sent before a connection drops
    retry_after: str = ""
    code: str = ""  # X-Error-Code


@dataclass
class Repo:
    """A repository: files by revision, and which names stand for which commit."""

    commits: dict[str, dict[str, bytes]]
    refs: dict[str, str] = field(default_factory=dict)
    gated: bool = False
    private: bool = False


@dataclass
class Hub:
    """The content, the faults, and what was asked."""

    repos: dict[str, Repo] = field(default_factory=dict)
    github: dict[str, bytes] = field(default_factory=dict)
    token: str = "hf_secret"
    faults: dict[str, list[Fault]] = field(default_factory=dict)
    sent: Counter[str] = field(default_factory=Counter)  # bytes of bodies by file name
    asked: list[tuple[str, str]] = field(default_factory=list)  # method and path
    ranges: list[str] = field(default_factory=list)
    leaks: list[str] = field(default_factory=list)  # paths that got a token which must not have
    bytes_per_second: float = 0.0  # 0 = as fast as it goes
    url: str = ""
    etags: dict[str, str] = field(default_factory=dict)  # wrong checksums to tell, by file name
    answer: bytes = b""  # in place of every description of a repository
    pause: float = 0.0  # seconds before each byte of a description

    def put(
        self, name: str, files: Mapping[str, bytes], commit: str = HEAD_OF_MAIN, ref: str = "main"
    ) -> Repo:
        """Add a commit to a repository and let the branch be it."""
        repo = self.repos.setdefault(name, Repo({}))
        repo.commits[commit] = dict(files)
        repo.refs[ref] = commit
        return repo

    def fail(self, name: str, kind: str, **more: object) -> None:
        """Let the next requests of a file go wrong."""
        self.faults.setdefault(name, []).append(Fault(kind, **more))  # type: ignore[arg-type]

    def take_fault(self, name: str) -> Fault | None:
        """The fault of this request, if there is one left."""
        queue = self.faults.get(name) or []
        if not queue:
            return None
        queue[0].times -= 1
        return queue.pop(0) if queue[0].times == 0 else queue[0]


def is_large(name: str, content: bytes) -> bool:
    """True for what the Hub keeps in LFS."""
    return name.endswith((".safetensors", ".bin", ".pt")) or len(content) > LARGE


def git_sha1(content: bytes) -> str:
    """Git's name of a blob."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def files_of(folder: Path) -> dict[str, bytes]:
    """All files below a folder, as a repository has them."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


class QuietServer(ThreadingHTTPServer):
    """A client that closes its connection is no news; a traceback would lie among what the test reads."""

    def handle_error(self, request: object, client_address: object) -> None:
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


@contextmanager
def running(hub: Hub) -> Iterator[Hub]:
    """Serve a Hub on a free port of loopback until the block ends."""

    class Handler(_Handler):
        pass

    Handler.hub = hub
    server = QuietServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


def environment(hub: Hub, home: Path, **more: str) -> dict[str, str]:
    """The environment of a process that takes this server for the Hub and for GitHub."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING", "XDG_", "FOURM_"))}
    proxies = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), "")
    return {
        **kept, **proxies, "NO_PROXY": "*", "HF_ENDPOINT": hub.url, "HF_HOME": str(home),
        "FOURM_GITHUB_ENDPOINT": f"{hub.url}/github", "HF_HUB_DOWNLOAD_TIMEOUT": "5",
        "COLUMNS": "100", "NO_COLOR": "1", **more,
    }  # fmt: skip


class _Handler(BaseHTTPRequestHandler):
    """One request."""

    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        """As GET, without the body."""
        self._answer()

    def do_GET(self) -> None:
        """Route a request."""
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append((self.command, path))
        with suppress(BrokenPipeError, ConnectionResetError):
            if path.startswith("/api/"):
                self._describe(path.removeprefix("/api/"))
            elif path.startswith("/cdn/"):
                self._content_of(path.removeprefix("/cdn/"))
            elif path.startswith("/github/"):
                self._github(path.removeprefix("/github/"))
            elif "/resolve/" in path:
                self._resolve(path)
            else:
                self._refuse(404)

    def _describe(self, path: str) -> None:
        kind, _, rest = path.partition("/")
        name, _, revision = rest.partition("/revision/")
        if name.endswith("/refs"):
            return self._refs(self._key(kind, name.removesuffix("/refs")))
        repo = self._open(self._key(kind, name))
        if repo is None:
            return None
        fault = self.hub.take_fault("api")
        if fault is not None:
            if fault.kind == "page":
                return self._send(
                    200, b"<html>Please log in to this network</html>", {"Content-Type": "text/html"}
                )
            return self._fault(fault)
        commit = self._commit(repo, revision or "main")
        if commit is None:
            return None
        if self.hub.answer:
            return self._send(200, self.hub.answer, {"Content-Type": "application/json"})
        rows = [self._row(n, c) for n, c in repo.commits[commit].items()]
        answer = {"id": name, "sha": commit, "siblings": rows, "private": False, "tags": [], "downloads": 0}
        return self._json(answer)

    def _row(self, name: str, content: bytes) -> dict[str, object]:
        row: dict[str, object] = {"rfilename": name, "size": len(content), "blobId": git_sha1(content)}
        if is_large(name, content):
            sha256 = self.hub.etags.get(name) or hashlib.sha256(content).hexdigest()
            row["lfs"] = {"sha256": sha256, "size": len(content), "pointerSize": 130}
        return row

    def _refs(self, key: str) -> None:
        repo = self._open(key)
        if repo is not None:
            rows = [{"name": n, "ref": f"refs/heads/{n}", "targetCommit": c} for n, c in repo.refs.items()]
            self._json({"branches": rows, "tags": [], "converts": []})

    def _resolve(self, path: str) -> None:
        key, _, rest = path.lstrip("/").partition("/resolve/")
        revision, _, name = rest.partition("/")
        repo = self._open(key)
        commit = self._commit(repo, revision) if repo is not None else None
        if repo is None or commit is None:
            return
        content, headers = repo.commits[commit].get(name), {"X-Repo-Commit": commit}
        if fault := self.hub.take_fault(f"resolve:{name}"):
            self._fault(fault)
        elif content is None:
            self._refuse(404, "EntryNotFound", headers)
        elif is_large(name, content):
            other_host = self.hub.url.replace("127.0.0.1", "localhost")
            headers["X-Linked-Etag"] = f'"{hashlib.sha256(content).hexdigest()}"'
            headers["X-Linked-Size"] = str(len(content))
            headers["Location"] = f"{other_host}/cdn/{key}/{commit}/{name}"
            self._send(302, b"", headers)
        else:
            self._content(name, content, {**headers, "ETag": f'"{git_sha1(content)}"'})

    def _content_of(self, path: str) -> None:
        if "Authorization" in self.headers:
            self.hub.leaks.append(path)
        for key, repo in self.hub.repos.items():
            if path.startswith(key + "/"):
                commit, _, name = path.removeprefix(key + "/").partition("/")
                return self._content(name, repo.commits[commit][name], {})
        return self._refuse(404)

    def _github(self, path: str) -> None:
        if "Authorization" in self.headers:
            self.hub.leaks.append(path)
        name = path.rpartition("/")[2]
        if path not in self.hub.github:
            return self._refuse(404)
        return self._content(name, self.hub.github[path], {})

    def _content(self, name: str, content: bytes, headers: dict[str, str]) -> None:
        """A body or a range of it, with what goes wrong."""
        fault = self.hub.take_fault(name) if self.command == "GET" else None
        kind = fault.kind if fault else ""
        if fault is not None and kind.isdigit():
            return self._fault(fault)
        if kind in ("page", "page-in-pieces"):
            return self._page(kind == "page")
        if kind == "corrupt":
            content = content[:-1] + bytes([content[-1] ^ 1])
        if kind == "more":
            content += b"more"
        if kind == "size":
            content = content[:-3]
        start, status, span = 0, 200, self.headers.get("Range", "")
        if span and kind != "ignore-range":
            self.hub.ranges.append(span)
            start = int(span.removeprefix("bytes=").rstrip("-"))
            if start >= len(content):
                return self._send(416, b"", {"Content-Range": f"bytes */{len(content)}"})
            status = 206
            headers = {**headers, "Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
        body = content[start:]
        self.send_response(status)
        if kind == "more":
            headers = {**headers, "Connection": "close"}
        else:
            headers = {**headers, "Content-Length": str(len(body))}
        for header, value in headers.items():
            self.send_header(header, value)
        self.end_headers()
        if self.command == "HEAD":
            return None
        if fault is not None and kind in ("drop", "truncate", "reset"):
            body = body[: fault.after]
        self._write(name, body)
        if kind in ("drop", "truncate", "reset"):
            if kind == "reset":  # an RST instead of a proper end
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            self.close_connection = True
            self.connection.close()
        if kind == "more":
            self.close_connection = True
        return None

    def _page(self, is_sized: bool) -> None:
        """A login page with its size, or without."""
        body = b"\r\n<!-- portal -->\n<!DOCTYPE html><html>Log in</html>"
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header(*(("Content-Length", str(len(body))) if is_sized else ("Connection", "close")))
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = not is_sized

    def _write(self, name: str, body: bytes) -> None:
        step = 1 << 16
        for start in range(0, len(body), step):
            piece = body[start : start + step]
            self.hub.sent[name] += len(piece)  # first, for a client that has all of it looks at once
            self.wfile.write(piece)
            if self.hub.bytes_per_second:
                time.sleep(len(piece) / self.hub.bytes_per_second)

    def _open(self, key: str) -> Repo | None:
        """The repository, if this caller may read it; otherwise the refusal is sent."""
        repo, given = self.hub.repos.get(key), self.headers.get("Authorization", "")
        if given and given != f"Bearer {self.hub.token}":
            self._refuse(401, "", {"X-Error-Message": "Invalid credentials in Authorization header"})
        elif repo is None or (repo.private and not given):
            self._refuse(404 if given else 401, "RepoNotFound")
        elif repo.gated and (not given or self.hub.token == "hf_not_on_the_list"):
            self._refuse(403 if given else 401, "GatedRepo")
        else:
            return repo
        return None

    def _commit(self, repo: Repo, revision: str) -> str | None:
        commit = repo.refs.get(revision, revision)
        if commit in repo.commits:
            return commit
        self._refuse(404, "RevisionNotFound")
        return None

    @staticmethod
    def _key(kind: str, name: str) -> str:
        return name if kind == "models" else f"{kind}/{name}"

    def _fault(self, fault: Fault) -> None:
        headers = {"Retry-After": fault.retry_after} if fault.retry_after else {}
        self._refuse(int(fault.kind), fault.code, headers)

    def _refuse(self, status: int, code: str = "", headers: Mapping[str, str] | None = None) -> None:
        named = {"X-Error-Code": code} if code else {}
        self._send(status, json.dumps({"error": f"refused {status}"}).encode(), {**named, **(headers or {})})

    def _json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for header, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(header, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        for byte in body if self.hub.pause else b"":
            time.sleep(self.hub.pause)
            self.wfile.write(bytes([byte]))
        self.wfile.write(b"" if self.hub.pause else body)
