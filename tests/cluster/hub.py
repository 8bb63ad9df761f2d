"""A hub of models with one model: what clusters without a way out fetch `hf://` from.

Answers the calls of huggingface_hub that fetching needs: description, tree, files with ranges.
Runs alone, on any Python, so that a small image can hold it:

    python hub.py --folder MODEL --repository ORGANISATION/NAME --port 8080
"""

import argparse
import hashlib
import json
import re
import signal
import sys
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

BLOCK_BYTES = 1 << 20
BRANCH = "main"


class ModelRepository:
    """One folder under one name, with a commit made of its files' names, sizes and times."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.files = {path.name: path for path in sorted(folder.iterdir()) if path.is_file()}
        self.oids = {name: _digest(name, path) for name, path in self.files.items()}
        self.commit = hashlib.sha1("".join(self.oids.values()).encode()).hexdigest()

    def has(self, revision: str) -> bool:
        """Tell whether a branch or commit is there."""
        return revision in (BRANCH, self.commit)

    def describe(self) -> dict[str, object]:
        """Return what the hub says of a model."""
        return {
            "_id": self.commit[:24],
            "id": self.name,
            "modelId": self.name,
            "sha": self.commit,
            "private": False,
            "gated": False,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "tags": [],
            "siblings": [{"rfilename": name} for name in self.files],
        }

    def list_tree(self) -> list[dict[str, object]]:
        """Return what the hub says of a model's files."""
        return [
            {"type": "file", "path": name, "size": path.stat().st_size, "oid": self.oids[name]}
            for name, path in self.files.items()
        ]


def build_server(repository: ModelRepository, host: str, port: int) -> ThreadingHTTPServer:
    """Return a server that offers `repository`; port 0 takes a free one."""

    class Handler(_Handler):
        pass

    Handler.repository = repository
    return ThreadingHTTPServer((host, port), Handler)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    repository: ModelRepository

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def _answer(self, *, with_body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        name = re.escape(self.repository.name)
        if path == "/health":
            self._send_json({"status": "ok"}, with_body)
        elif match := re.fullmatch(rf"/api/models/{name}(?:/revision/([^/]+))?", path):
            if self._check(match[1] or BRANCH):
                self._send_json(self.repository.describe(), with_body)
        elif match := re.fullmatch(rf"/api/models/{name}/tree/([^/]+)", path):
            if self._check(match[1]):
                self._send_json(self.repository.list_tree(), with_body)
        elif match := re.fullmatch(rf"/{name}/resolve/([^/]+)/([^/]+)", path):
            if self._check(match[1]):
                self._send_file(match[2], with_body)
        else:
            self._refuse("RepoNotFound", f"there is only {self.repository.name} here, not {path}")

    def _check(self, revision: str) -> bool:
        if self.repository.has(revision):
            return True
        self._refuse("RevisionNotFound", f"there is no revision {revision}")
        return False

    def _send_json(self, document: object, with_body: bool) -> None:
        body = json.dumps(document).encode()
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def _send_file(self, name: str, with_body: bool) -> None:
        path = self.repository.files.get(name)
        if path is None:
            self._refuse("EntryNotFound", f"there is no file {name}")
            return
        size = path.stat().st_size
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        first = int(asked[1]) if asked else 0
        last = min(int(asked[2]) if asked and asked[2] else size - 1, size - 1)
        self.send_response(HTTPStatus.PARTIAL_CONTENT if asked else HTTPStatus.OK)
        if asked:
            self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Length", str(max(0, last - first + 1)))
        self.send_header("ETag", f'"{self.repository.oids[name]}"')
        self.send_header("X-Repo-Commit", self.repository.commit)
        self.end_headers()
        if not with_body:
            return
        with path.open("rb") as file:
            file.seek(first)
            left = last - first + 1
            while left > 0:
                block = file.read(min(left, BLOCK_BYTES))
                if not block:
                    break
                self.wfile.write(block)
                left -= len(block)

    def _refuse(self, code: str, message: str) -> None:
        self.send_response(HTTPStatus.NOT_FOUND)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", message)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *arguments: object) -> None:
        """Write a line for each call: which files a stage fetched can be seen in it."""
        print(f"{self.address_string()} {format % arguments}", file=sys.stderr, flush=True)


def _digest(name: str, path: Path) -> str:
    status = path.stat()
    return hashlib.sha1(f"{name} {status.st_size} {status.st_mtime_ns}".encode()).hexdigest()


def main() -> None:
    """Serve until a signal comes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--repository", required=True)
    parser.add_argument("--host", default="0.0.0.0")
    parser.add_argument("--port", type=int, default=8080)
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    repository = ModelRepository(arguments.repository, arguments.folder)
    build_server(repository, arguments.host, arguments.port).serve_forever()


if __name__ == "__main__":
    main()
