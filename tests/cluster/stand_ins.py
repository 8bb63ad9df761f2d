"""A gateway that stands in for those of all resources, in tests of the operator."""

import json
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Fleet:
    """What the gateways of all resources say, by namespace and name.

    is_silent: they answer nothing of use. silent_for_s: those that answer only after a time.
    troubles: statuses of components' new pods, where they do not just run.
    """

    num_stages: int = 2
    kv_per_worker: int = 1 << 30
    demanded: int = 0
    holds_drains: bool = False
    is_silent: bool = False
    silent_for_s: dict[tuple[str, str], float] = field(default_factory=dict)
    troubles: dict[str, dict[str, Any]] = field(default_factory=dict)
    workers: dict[tuple[str, str], dict[str, str]] = field(default_factory=dict)
    drained: list[str] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def inspect(self, key: tuple[str, str]) -> dict[str, Any]:
        """Return the document of one gateway."""
        with self.lock:
            workers = dict(self.workers.get(key, {}))
            demanded = self.demanded
        return {
            "version": "1",
            "protocol_version": 1,
            "is_ready": bool(workers),
            "num_stages": self.num_stages,
            "stages": [{"name": f"s{i}", "busy_share": 1.0} for i in range(self.num_stages)],
            "workers": [
                {
                    "name": name,
                    "state": state,
                    "num_sequences": 0,
                    "kv_used_bytes": 0,
                    "kv_capacity_bytes": self.kv_per_worker,
                    "busy_share": 0.5,
                }
                for name, state in workers.items()
            ],
            "kv": {
                "used_bytes": 0,
                "demanded_bytes": demanded,
                "capacity_bytes": len(workers) * self.kv_per_worker,
            },
            "tokens_out_per_s": 10.0,
        }

    def set_state(self, key: tuple[str, str], worker: str, state: str) -> bool:
        """Drain a worker, or take that back."""
        with self.lock:
            workers = self.workers.get(key, {})
            if worker not in workers:
                return False
            if state == "active":
                self.cancelled.append(worker)
            elif not self.holds_drains:
                self.drained.append(worker)
                state = "drained"
            workers[worker] = state
            return True

    def end_drains(self) -> None:
        """Hold drains no longer, and end those that were held."""
        with self.lock:
            self.holds_drains = False
            for workers in self.workers.values():
                ending = [name for name, state in workers.items() if state == "draining"]
                self.drained += ending
                workers.update(dict.fromkeys(ending, "drained"))

    def follow(self, pods: Mapping[tuple[str, str], set[str]]) -> None:
        """Let the workers be those whose pods are ready."""
        with self.lock:
            for key in set(self.workers) | set(pods):
                known = self.workers.get(key, {})
                self.workers[key] = {
                    name: known.get(name, "active") for name in sorted(pods.get(key, set()))
                }


class StandInGateway:
    """The control APIs of all resources' gateways, under /NAMESPACE/NAME."""

    def __init__(self, fleet: Fleet) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                time.sleep(fleet.silent_for_s.get(self._key(), 0.0))
                if fleet.is_silent:
                    self._answer(503, {"error": {"message": "silent"}})
                else:
                    self._answer(200, fleet.inspect(self._key()))

            def do_PUT(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length", "0")))
                self._set("draining", 202)

            def do_DELETE(self) -> None:
                self._set("active", 204)

            def _set(self, state: str, code: int) -> None:
                worker = self.path.split("/")[5]
                found = fleet.set_state(self._key(), worker, state)
                self._answer(code if found else 404, {})

            def _key(self) -> tuple[str, str]:
                _, namespace, name, *_ = self.path.split("/")
                return namespace, name

            def _answer(self, code: int, document: dict[str, Any]) -> None:
                content = b"" if code == 204 else json.dumps(document).encode()
                self.send_response(code)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, format: str, *args: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            block_on_close = False
            request_queue_size = 128

            def handle_error(self, request: Any, client_address: Any) -> None:
                """Who waited too long has gone."""

        self._server = Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """Its address, as the operator's setting has it."""
        return f"http://127.0.0.1:{self._server.server_address[1]}/{{namespace}}/{{name}}"

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
