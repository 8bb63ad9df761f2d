"""A proxy before the API server that lets calls fail as they do in life: 409, 429, 500, 504,
answers that are lost after the call took effect, and watches that end in the middle."""

import contextlib
import http.client
import json
import random
import socket
import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

TIMEOUT_S = 60.0
READ_FAULTS = (0, 429, 500, 504)
WRITE_FAULTS = (0, 409, 429, 500, 504)
"""0: the answer is lost, though the call took effect."""

WATCH = "watch="
FORBIDDEN, GONE, UNAVAILABLE = 403, 410, 503

_HOP_HEADERS = ("transfer-encoding", "connection", "content-length")


class FaultyProxy:
    """Speaks plain HTTP and passes on to the API server of a kubeconfig.

    share: of calls that fail; it may be changed meanwhile. num_faults: how many did.
    refused: parts of paths that are forbidden to read. is_deaf: nothing is read but leases.
    forgotten_version: watches from it or before cannot go on, and must list anew.
    """

    def __init__(self, kubeconfig: Path, *, share: float, seed: int) -> None:
        document = json.loads(kubeconfig.read_text(encoding="utf-8"))
        cluster = document["clusters"][0]["cluster"]
        self.share = share
        self.num_faults = 0
        self.refused: set[str] = set()
        self.is_deaf = False
        self.forgotten_version = 0
        self._watches: set[socket.socket] = set()
        outer, draw, lock = self, random.Random(seed), threading.Lock()
        context = ssl.create_default_context(cafile=cluster["certificate-authority"])
        host, port = cluster["server"].removeprefix("https://").split(":")

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = TIMEOUT_S

            def do_any(self) -> None:
                with lock:
                    faults = READ_FAULTS if self.command == "GET" else WRITE_FAULTS
                    fault = draw.choice(faults) if draw.random() < outer.share else None
                body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
                fault = outer._reads(self.command, self.path) or fault
                if fault == GONE:
                    self._forget()
                    return
                if fault:
                    self._fail(fault)
                    return
                try:
                    self._pass_on(body, is_lost=fault == 0)
                except OSError:
                    self.close_connection = True

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_any

            def _fail(self, status: int) -> None:
                outer.num_faults += 1
                content = json.dumps({"kind": "Status", "message": "injected", "code": status})
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                if status == 429:
                    self.send_header("Retry-After", "1")
                self.end_headers()
                self.wfile.write(content.encode())

            def _forget(self) -> None:
                status = {"kind": "Status", "code": GONE, "reason": "Expired", "message": "old"}
                self.send_response(200)
                self.send_header("Connection", "close")
                self.end_headers()
                self.wfile.write(json.dumps({"type": "ERROR", "object": status}).encode() + b"\n")
                self.close_connection = True

            def _pass_on(self, body: bytes, *, is_lost: bool) -> None:
                upstream = http.client.HTTPSConnection(
                    host, int(port), context=context, timeout=TIMEOUT_S
                )
                headers = {
                    name: value
                    for name, value in self.headers.items()
                    if name.lower() not in ("host", "connection", "accept-encoding")
                }
                try:
                    upstream.request(self.command, self.path, body or None, headers)
                    if WATCH in self.path:
                        outer._watches.add(upstream.sock)
                    answer = upstream.getresponse()
                    if is_lost and WATCH not in self.path:
                        outer.num_faults += 1
                        self.close_connection = True
                        return
                    self.send_response(answer.status)
                    for name, value in answer.getheaders():
                        if name.lower() not in (
                            "transfer-encoding",
                            "connection",
                            "content-length",
                        ):
                            self.send_header(name, value)
                    self.send_header("Connection", "close")
                    if WATCH in self.path:
                        self.send_header("Transfer-Encoding", "chunked")
                        self.end_headers()
                        self._copy_watch(answer, cut=is_lost)
                    else:
                        self.end_headers()
                        self.wfile.write(answer.read())
                finally:
                    self.close_connection = True
                    outer._watches.discard(upstream.sock)
                    upstream.close()

            def _copy_watch(self, answer: http.client.HTTPResponse, *, cut: bool) -> None:
                """Pass on in chunks, as it came: one that is cut off lacks the last, empty one."""
                while data := answer.read1(65536):
                    self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))
                    self.wfile.flush()
                    if cut:
                        outer.num_faults += 1
                        return  # a watch that is lost
                self.wfile.write(b"0\r\n\r\n")

            def log_message(self, format: str, *args: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            block_on_close = False

            def handle_error(self, request: Any, client_address: Any) -> None:
                """Connections that break are the purpose."""

        self._server = Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        cluster.pop("certificate-authority")
        cluster["server"] = f"http://127.0.0.1:{self._server.server_address[1]}"
        self.kubeconfig = kubeconfig.with_name("faulty-kubeconfig")
        self.kubeconfig.write_text(json.dumps(document), encoding="utf-8")

    def cut_watches(self) -> None:
        """Let the connections of all watches break."""
        for one in list(self._watches):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def _reads(self, command: str, path: str) -> int | None:
        """Return the status by which a read fails on purpose, None if it does not."""
        if command != "GET":
            return None
        if any(part in path for part in self.refused):
            return FORBIDDEN
        is_watch = WATCH in path
        if self.is_deaf and "/leases/" not in path:
            return UNAVAILABLE
        if is_watch:
            asked = parse_qs(urlsplit(path).query).get("resourceVersion", ["0"])[0]
            return GONE if int(asked) <= self.forgotten_version else None
        return None

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
