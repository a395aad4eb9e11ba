"""A stand-in for the Hugging Face hub on 127.0.0.1: what huggingface_hub asks of it, and faults.

`with Hub() as hub:` serves; `hub.use(monkeypatch, cache)` sends this process to it, with an empty
cache and none of the person's own settings; `hub.environment(cache)` does so for a subprocess.
"""

import hashlib
import json
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from urllib.parse import unquote, urlsplit

import pytest

OWN_SETTINGS = ("HF_", "HUGGING", "SDPIPE_MODEL", "TRANSFORMERS_OFFLINE", "TQDM_")


Change = Callable[[str, int, dict[str, str], bytes], tuple[int, dict[str, str], bytes]]
"""From the path that is asked for, status, headers and body to another answer."""


@dataclass
class Repo:
    """One repository with one commit on the branch main.

    gated: its files are for those who accepted the terms.
    cut: for a file, after how many bytes the connection drops, and how often it still does.
    """

    files: dict[str, bytes]
    gated: bool = False
    cut: dict[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def commit(self) -> str:
        total = hashlib.sha1(usedforsecurity=False)
        for name in sorted(self.files):
            total.update(name.encode() + self.files[name])
        return total.hexdigest()


class Hub:
    """The server. `requests` has the method and path of each request, `status` fails them all.

    `change` makes another answer of each."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.requests: list[str] = []
        self.status: int | None = None
        self.change: Change | None = None
        hub = self

        class Handler(_Handler):
            pass

        Handler.hub = hub
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> "Hub":
        # The default interval would make every test wait half a second at its end.
        serve = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)
        serve.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: object, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Whoever asks now finds nobody."""
        from huggingface_hub import close_session

        self.server.shutdown()
        self.server.server_close()
        close_session()  # a connection that is open would still be answered

    def add(self, name: str, files: dict[str, bytes] | Path, *, gated: bool = False) -> Repo:
        """Publishes files: by name, or those of a folder."""
        if isinstance(files, Path):
            paths = [path for path in files.rglob("*") if path.is_file()]
            files = {path.relative_to(files).as_posix(): path.read_bytes() for path in paths}
        repo = self.repos[name] = Repo(files, gated)
        return repo

    def fetched(self) -> list[str]:
        """The names of the files whose contents were asked for, sorted."""
        gets = [r for r in self.requests if r.startswith("GET ") and "/resolve/" in r]
        return sorted(r.split("/resolve/")[1].split("/", 1)[1] for r in gets)

    def use(self, monkeypatch: pytest.MonkeyPatch, cache: Path, *, offline: bool = False) -> None:
        """Sends huggingface_hub in this process here; it read the environment when imported."""
        from huggingface_hub import close_session, constants

        for name in [n for n in os.environ if n.startswith(OWN_SETTINGS)]:
            monkeypatch.delenv(name)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        template = self.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", self.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(cache / "no token"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
        close_session()

    def environment(self, cache: Path, **more: str) -> dict[str, str]:
        """The environment of a subprocess that is to come here."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(OWN_SETTINGS)}
        own = {"HF_ENDPOINT": self.url, "HF_HUB_CACHE": str(cache), "NO_PROXY": "127.0.0.1"}
        return {**kept, **own, "HF_HOME": str(cache / "home"), **more}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        if self.hub.status is not None:
            return self.answer(self.hub.status)
        name, middle, rest = self.split(path)
        repo = self.hub.repos.get(name)
        if not middle:
            return self.answer(404)
        if repo is None:
            return self.answer(401, code="RepoNotFound")
        revision, _, file = rest.partition("/")
        if revision not in ("main", repo.commit):
            return self.answer(404, code="RevisionNotFound")
        if middle == "revision":
            sizes = {file: len(data) for file, data in sorted(repo.files.items())}
            siblings = [{"rfilename": file} for file in sizes]
            if "blobs=" in self.path:
                siblings = [{"rfilename": file, "size": size} for file, size in sizes.items()]
            return self.send({"id": name, "sha": repo.commit, "siblings": siblings})
        if middle == "tree":
            return self.send(
                [
                    {"type": "file", "path": file, "size": len(data), "oid": _hash(data)}
                    for file, data in sorted(repo.files.items())
                ]
            )
        if repo.gated:
            return self.answer(403, code="GatedRepo")
        if file not in repo.files:
            return self.answer(404, code="EntryNotFound")
        return self.send_file(repo, file)

    @staticmethod
    def split(path: str) -> tuple[str, str, str]:
        """owner/name, what is asked of it, and the revision with the rest."""
        words = path.removeprefix("/api/models").strip("/").split("/")
        if len(words) < 4 or words[2] not in ("revision", "tree", "resolve"):
            return "", "", ""
        return "/".join(words[:2]), words[2], "/".join(words[3:])

    def send(self, value: object) -> None:
        self.answer(200, json.dumps(value).encode())

    def send_file(self, repo: Repo, file: str) -> None:
        data = repo.files[file]
        start = 0
        if span := self.headers.get("Range"):
            start = int(span.removeprefix("bytes=").split("-")[0])
        body = data[start:]
        headers = {"X-Repo-Commit": repo.commit, "ETag": f'"{_hash(data)}"'}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        after, times = repo.cut.get(file, (0, 0))
        if self.command == "GET" and times:
            repo.cut[file] = (after, times - 1)
            self.close_connection = True
            self.answer(206 if start else 200, body, headers, keep=max(0, after - start))
        else:
            self.answer(206 if start else 200, body, headers)

    def answer(
        self,
        status: int,
        body: bytes = b"",
        headers: dict[str, str] | None = None,
        *,
        code: str | None = None,
        keep: int | None = None,
    ) -> None:
        if self.hub.change is not None:
            keep = None
            status, headers, body = self.hub.change(self.path, status, dict(headers or {}), body)
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if code:
            self.send_header("X-Error-Code", code)
        if "Content-Length" not in (headers or {}):
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[:keep])


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
