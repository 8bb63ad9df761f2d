"""An API server's side of the wire, for tests of faults: answers as it is told, over a socket."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from kubernetes import client

from glinthawk_operator.cluster import Cluster


class ApiStandIn:
    """Answers what it was told to, one after the other, and keeps what it was asked."""

    def __init__(self) -> None:
        self.answers: list[tuple[int, dict[str, str], Any]] = []
        self.asked: list[tuple[str, str, str, Any]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_any(self) -> None:
                length = int(self.headers.get("Content-Length", "0"))
                body = self.rfile.read(length)
                kind = self.headers.get("Content-Type", "")
                outer.asked.append(
                    (self.command, self.path, kind, json.loads(body) if body else None)
                )
                code, headers, document = (
                    outer.answers.pop(0) if outer.answers else (200, {}, {"metadata": {}})
                )
                if code == 0:
                    self.connection.close()  # as a server that dies
                    return
                content = json.dumps(document).encode()
                self.send_response(code)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_any

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def fail(self, code: int, **headers: str) -> None:
        message = {"kind": "Status", "message": f"because of {code}", "code": code}
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        self.answers.append((code, names, message))

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class Pauses:
    """A clock that only moves when someone sleeps."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.slept: list[float] = []

    def clock(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now_s += seconds


def make_cluster(server: ApiStandIn, pauses: Pauses | None = None) -> Cluster:
    """Return what calls a stand-in, without waiting in earnest."""
    pauses = pauses or Pauses()
    configuration = client.Configuration()
    configuration.host = server.url
    configuration.retries = False
    return Cluster(
        client.ApiClient(configuration), clock=pauses.clock, sleep=pauses.sleep, deadline_s=10.0
    )
