"""What stands in for machines in tests of the operator: kubelets, and a gateway for all resources.

The API server and its controllers are real; these say of pods that they run, and of workers how
much they hold.
"""

import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from kubernetes import client
from kubernetes.client.exceptions import ApiException

COMPONENT = "app.kubernetes.io/component"
INSTANCE = "app.kubernetes.io/instance"
RAN = "2026-01-01T00:00:00Z"


@dataclass
class Fleet:
    """What the gateways of all resources say, by namespace and name."""

    num_stages: int = 2
    kv_per_worker: int = 1 << 30
    demanded: int = 0
    holds_drains: bool = False
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
                namespace, name = self._key()
                self._answer(200, fleet.inspect((namespace, name)))

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

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
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


class Kubelets:
    """Says of every pod that it runs; of check pods that they ran, or cannot be fetched."""

    def __init__(self, api: client.CoreV1Api, fleet: Fleet) -> None:
        self._api = api
        self._fleet = fleet
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(0.3):
            try:
                self._turn()
            except ApiException:
                continue

    def _turn(self) -> None:
        workers: dict[tuple[str, str], set[str]] = {}
        for pod in self._api.list_pod_for_all_namespaces().items:
            component = (pod.metadata.labels or {}).get(COMPONENT)
            if component is None or pod.metadata.deletion_timestamp is not None:
                continue
            status = self._status(component, pod.spec.containers[0].image)
            if pod.status.phase == "Pending" and not pod.status.container_statuses:
                self._api.patch_namespaced_pod_status(
                    pod.metadata.name, pod.metadata.namespace, {"status": status}
                )
            elif component == "attention":
                key = (pod.metadata.namespace, pod.metadata.labels[INSTANCE])
                workers.setdefault(key, set()).add(pod.metadata.name)
        self._fleet.follow(workers)

    def _status(self, component: str, image: str) -> dict[str, Any]:
        base = {"name": component, "image": image, "imageID": image, "restartCount": 0}
        if "missing" in image:
            waiting = {"waiting": {"reason": "ErrImagePull", "message": f"{image} is not there"}}
            return {"containerStatuses": [{**base, "ready": False, "state": waiting}]}
        if component == "check":
            ended = {"exitCode": 0, "message": '{"version": "2", "protocol_version": 1}'}
            state = {"terminated": {**ended, "startedAt": RAN, "finishedAt": RAN}}
            return {
                "phase": "Succeeded",
                "containerStatuses": [{**base, "ready": False, "state": state}],
            }
        return {
            "phase": "Running",
            "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": RAN}],
            "containerStatuses": [
                {**base, "ready": True, "state": {"running": {"startedAt": RAN}}}
            ],
        }
