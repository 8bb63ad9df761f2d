"""Kubelets that stand in for machines, in tests of the operator: they say of pods that they run.

The API server and its controllers are real.
"""

import itertools
import json
import threading
from collections.abc import Mapping
from typing import Any

from kubernetes import client
from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import HTTPError

from cluster.stand_ins import Fleet

COMPONENT = "app.kubernetes.io/component"
INSTANCE = "app.kubernetes.io/instance"
RAN = "2026-01-01T00:00:00Z"
WATCH_S = 2


class Kubelets:
    """Says of every pod that it runs; of check pods that they ran, or cannot be fetched.

    Args:
        api: of an administrator.
        fleet: told which workers run, and asked what ails pods.
        num_nodes: machines to make, and to spread pods over; without any, pods run nowhere.
        waits_for_scheduler: whether only pods that were given a node run.
    """

    def __init__(
        self,
        api: client.CoreV1Api,
        fleet: Fleet,
        *,
        num_nodes: int = 0,
        waits_for_scheduler: bool = False,
    ) -> None:
        self._api = api
        self._fleet = fleet
        self._pods: dict[str, dict[str, Any]] = {}
        self._lock = threading.Lock()
        self._nodes = itertools.cycle([make_node(api, f"node-{i}") for i in range(num_nodes)])
        self._has_nodes = num_nodes > 0
        self._waits = waits_for_scheduler
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._watch, daemon=True),
            threading.Thread(target=self._run, daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """End."""
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _watch(self) -> None:
        while not self._stop.is_set():
            try:
                listed = self._ask()
                content = json.loads(listed.read())
                with self._lock:
                    self._pods = {one["metadata"]["uid"]: one for one in content["items"]}
                version = content["metadata"]["resourceVersion"]
                while not self._stop.is_set() and version is not None:
                    version = self._follow(version)
            except (ApiException, HTTPError):
                self._stop.wait(0.3)

    def _ask(self, **options: Any) -> Any:
        return self._api.list_pod_for_all_namespaces(
            label_selector=COMPONENT, _preload_content=False, **options
        )

    def _follow(self, version: str) -> str | None:
        """Take in what a watch brings; return where to go on, None if that is lost."""
        events = self._ask(watch=True, resource_version=version, timeout_seconds=WATCH_S)
        for line in events:
            event = json.loads(line)
            if event["type"] == "ERROR":
                return None
            metadata = event["object"]["metadata"]
            with self._lock:
                if event["type"] == "DELETED":
                    self._pods.pop(metadata["uid"], None)
                else:
                    self._pods[metadata["uid"]] = event["object"]
            version = metadata["resourceVersion"]
        return version

    def _run(self) -> None:
        while not self._stop.wait(0.3):
            with self._lock:
                pods = list(self._pods.values())
            workers: dict[tuple[str, str], set[str]] = {}
            for pod in pods:
                try:
                    self._turn(pod, workers)
                except (ApiException, HTTPError):
                    continue
            self._fleet.follow(workers)

    def _turn(self, pod: dict[str, Any], workers: dict[tuple[str, str], set[str]]) -> None:
        metadata, status = pod["metadata"], pod["status"]
        component = metadata["labels"][COMPONENT]
        if metadata.get("deletionTimestamp") is not None:
            if pod["spec"].get("nodeName"):
                self._api.delete_namespaced_pod(
                    metadata["name"],
                    metadata["namespace"],
                    grace_period_seconds=0,
                    _preload_content=False,
                )
            return
        if self._waits and not pod["spec"].get("nodeName"):
            return
        wanted = self._status(component, pod["spec"]["containers"][0]["image"])
        if status.get("phase") == "Running" and component == "attention":
            workers.setdefault((metadata["namespace"], metadata["labels"][INSTANCE]), set()).add(
                metadata["name"]
            )
        elif status.get("phase") == "Pending" and not _says(status, wanted):
            place = (metadata["name"], metadata["namespace"])
            if self._has_nodes and not pod["spec"].get("nodeName"):
                self._bind(*place)
            self._api.patch_namespaced_pod_status(*place, {"status": wanted})

    def _bind(self, name: str, namespace: str) -> None:
        target = {"apiVersion": "v1", "kind": "Node", "name": next(self._nodes)}
        self._api.create_namespaced_pod_binding(
            name, namespace, {"metadata": {"name": name}, "target": target}, _preload_content=False
        )

    def _status(self, component: str, image: str) -> dict[str, Any]:
        if component in self._fleet.troubles:
            return self._fleet.troubles[component]
        base = {"name": component, "image": image, "imageID": image, "restartCount": 0}
        if "missing" in image:
            why = {"reason": "ErrImagePull", "message": f"{image} is not there"}
            state = _only("waiting", why)
            return {"containerStatuses": [{**base, "ready": False, "state": state}]}
        if component == "check":
            ended = {"exitCode": 0, "message": '{"version": "2", "protocol_version": 1}'}
            state = _only("terminated", {**ended, "startedAt": RAN, "finishedAt": RAN})
            return {
                "phase": "Succeeded",
                "containerStatuses": [{**base, "ready": False, "state": state}],
            }
        return {
            "phase": "Running",
            "conditions": [
                {"type": kind, "status": "True", "lastTransitionTime": RAN}
                for kind in ("PodScheduled", "Ready")
            ],
            "containerStatuses": [
                {**base, "ready": True, "state": _only("running", {"startedAt": RAN})}
            ],
        }


def make_node(
    api: client.CoreV1Api,
    name: str,
    *,
    is_ready: bool = True,
    capacity: Mapping[str, str] | None = None,
) -> str:
    """Make a node that says whether it is ready and what it has, and return its name."""
    ready = {
        "type": "Ready",
        "status": "True" if is_ready else "Unknown",
        "reason": "StandIn",
        "lastHeartbeatTime": RAN,
        "lastTransitionTime": RAN,
    }
    api.create_node({"metadata": {"name": name}})
    there_is = {"capacity": capacity, "allocatable": capacity} if capacity else {}
    api.patch_node_status(name, {"status": {"conditions": [ready], **there_is}})
    api.patch_node(name, {"spec": {"taints": None}})  # new ones are tainted until they are ready
    return name


def _only(name: str, content: dict[str, Any]) -> dict[str, Any]:
    """Return a container's state, in place of any other."""
    return {one: content if one == name else None for one in ("waiting", "running", "terminated")}


def _says(live: Any, wanted: Any) -> bool:
    """Tell whether a status says all that is wanted of it."""
    if isinstance(wanted, dict):
        return isinstance(live, dict) and all(_says(live.get(k), v) for k, v in wanted.items())
    if isinstance(wanted, list):
        return (
            isinstance(live, list)
            and len(live) >= len(wanted)
            and all(any(_says(one, part) for one in live) for part in wanted)
        )
    return bool(live == wanted)
