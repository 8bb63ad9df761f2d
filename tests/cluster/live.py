"""What the tests on a running cluster share: kubectl, and the resource that they look at.

The cluster is that of KUBECONFIG, on which tests/cluster/bring_up.sh has run. Where there is none,
`find_reason` says so, and every test that needs it is skipped with that.
"""

import base64
import copy
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from glinthawk_operator.manifests.names import child_name, selector_labels

ROOT = Path(__file__).resolve().parents[2]
NAMESPACE, NAME = "glinthawk-demo", "smollm2"
SYSTEM, RELEASE = "glinthawk-system", "glinthawk"
OPERATOR = f"{RELEASE}-operator"
MODEL = "smollm2-135m"
MODEL_FOLDER = ROOT / ".demo" / "hub" / "model"
WAIT_S = 240.0


class CommandFailed(Exception):
    """A command ended with an error; its standard error is the message."""


def find_reason() -> str | None:
    """Return why these tests cannot run, None if they can."""
    if not os.environ.get("KUBECONFIG") or shutil.which("kubectl") is None:
        return "KUBECONFIG or kubectl is missing: run `make cluster-test`"
    try:
        kubectl("get", "glinthawkdeployment", NAME)
    except (CommandFailed, subprocess.TimeoutExpired):
        return f"{NAME} does not run in {NAMESPACE}: run `make cluster-test`"
    return None


def run(*command: str, stdin: str | None = None, timeout_s: float = WAIT_S) -> str:
    """Run a command and return its output.

    Raises:
        CommandFailed: it did not end with 0.
    """
    done = subprocess.run(
        command, input=stdin, capture_output=True, text=True, timeout=timeout_s, check=False
    )
    if done.returncode != 0:
        raise CommandFailed(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def kubectl(*arguments: str, namespace: str = NAMESPACE, stdin: str | None = None) -> str:
    """Run kubectl in a namespace; raises as `run`."""
    return run("kubectl", "--namespace", namespace, *arguments, stdin=stdin)


def helm(*arguments: str) -> str:
    """Run helm in the namespace of the operator's release; raises as `run`."""
    return run("helm", "--namespace", SYSTEM, *arguments)


def read(*arguments: str, namespace: str = NAMESPACE) -> Any:
    """Return what `kubectl get` finds, as a document; a list's items."""
    document = json.loads(kubectl("get", *arguments, "--output", "json", namespace=namespace))
    return document["items"] if document["kind"] == "List" else document


def read_metrics(service: str, *, namespace: str) -> str:
    """Return a page of metrics, through the API server."""
    path = f"/api/v1/namespaces/{namespace}/services/{service}:9090/proxy/metrics"
    return kubectl("get", "--raw", path)


def wait_until(is_true: Callable[[], bool], what: str, timeout_s: float = WAIT_S) -> float:
    """Wait until something is true; return the seconds that it took."""
    began = time.monotonic()
    while not is_true():
        assert time.monotonic() - began < timeout_s, f"{what}: not within {timeout_s:g} s"
        time.sleep(1)
    return time.monotonic() - began


class Condition(NamedTuple):
    """A condition of a resource; empty where it was never said."""

    status: str = ""
    reason: str = ""
    message: str = ""


class Deployment:
    """One GlinthawkDeployment on the cluster.

    Args:
        manifest: as it is applied; `apply` changes it.
    """

    def __init__(self, manifest: Mapping[str, Any]) -> None:
        self.manifest = dict(manifest)
        self.name: str = manifest["metadata"]["name"]
        self.namespace: str = manifest["metadata"]["namespace"]

    def apply(self, change: Mapping[str, Any] | None = None) -> None:
        """Apply the manifest with a change of its spec; without one, the manifest."""
        changed = copy.deepcopy(self.manifest)
        merge(changed["spec"], change or {})
        kubectl("apply", "-f", "-", namespace=self.namespace, stdin=json.dumps(changed))

    def read(self) -> dict[str, Any]:
        """Return the resource."""
        found: dict[str, Any] = read("glinthawkdeployment", self.name, namespace=self.namespace)
        return found

    @property
    def memory_tier(self) -> dict[str, Any]:
        """How the memory tier stands, by the status."""
        found: dict[str, Any] = self.read().get("status", {}).get("memoryTier", {})
        return found

    def condition(self, kind: str) -> Condition:
        """Return a condition, only if it is about the present generation."""
        body = self.read()
        for one in body.get("status", {}).get("conditions", []):
            if one["type"] == kind and one["observedGeneration"] == body["metadata"]["generation"]:
                return Condition(one["status"], one["reason"], one["message"])
        return Condition()

    def is_settled(self) -> bool:
        """Tell whether the present generation serves, whole and with nothing left to do.

        The status may be of a moment ago, when there is no operator; the pods are not.
        """
        body = self.read()
        status, generation = body.get("status") or {}, body["metadata"]["generation"]
        wanted = {"Ready": "True", "Progressing": "False", "Degraded": "False"}
        said = {
            one["type"]: one["status"]
            for one in status.get("conditions", ())
            if one["observedGeneration"] == generation
        }
        if any(said.get(kind) != answer for kind, answer in wanted.items()):
            return False
        counts = {
            "gateway": 1,
            "stage": self.manifest["spec"]["gpuTier"]["stages"],
            "attention": status["memoryTier"]["desiredReplicas"],
        }
        return all(self.num_ready(component) == count for component, count in counts.items())

    def await_settled(self, timeout_s: float = WAIT_S) -> float:
        """Wait for that; return the seconds."""
        try:
            return wait_until(self.is_settled, f"{self.name} is settled", timeout_s)
        except AssertionError as error:
            raise AssertionError(f"{error}: {self.read().get('status')}") from error

    def await_workers(self, number: int, timeout_s: float = WAIT_S) -> float:
        """Wait until so many workers are wanted, ready and there; return the seconds."""

        def is_so() -> bool:
            tier = self.memory_tier
            names = ("desiredReplicas", "readyReplicas", "replicas")
            return all(tier.get(name) == number for name in names)

        try:
            return wait_until(is_so, f"{number} workers", timeout_s)
        except AssertionError as error:
            raise AssertionError(f"{error}: {self.memory_tier}") from error

    def pods(self, component: str) -> list[dict[str, Any]]:
        """Return a component's pods that are not ending."""
        labels = ",".join(f"{key}={value}" for key, value in self.labels(component).items())
        found = read("pods", "--selector", labels, namespace=self.namespace)
        return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]

    def num_ready(self, component: str) -> int:
        """Return how many of them are ready."""
        return sum(is_ready(pod) for pod in self.pods(component))

    def labels(self, component: str) -> dict[str, str]:
        """Return the labels of a component's pods."""
        return selector_labels(self.name, component)

    def events(self) -> list[dict[str, Any]]:
        """Return the Events about the resource, oldest first."""
        selector = f"involvedObject.kind=GlinthawkDeployment,involvedObject.name={self.name}"
        found = read("events", "--field-selector", selector, namespace=self.namespace)
        return sorted(found, key=lambda one: str(one.get("eventTime")))

    def api_key(self) -> str:
        """Return the key that the operator made."""
        name = child_name(self.name, "api-key")
        secret = read("secret", name, namespace=self.namespace)
        return base64.b64decode(secret["data"]["key"]).decode()


def is_ready(body: Mapping[str, Any]) -> bool:
    """Tell whether a pod or node is ready."""
    conditions = body["status"].get("conditions", [])
    return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)


def merge(into: dict[str, Any], change: Mapping[str, Any]) -> None:
    """Change a document as a merge patch does: None removes a field."""
    for key, value in change.items():
        if value is None:
            into.pop(key, None)
        elif isinstance(value, Mapping) and isinstance(into.get(key), dict):
            merge(into[key], value)
        else:
            into[key] = copy.deepcopy(value)


def read_sample(name: str = NAME, namespace: str = NAMESPACE) -> dict[str, Any]:
    """Return the manifest of the demo, under a name."""
    path = ROOT / "examples" / "cluster" / "smollm2.yaml"
    manifest: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    manifest["metadata"] = {"name": name, "namespace": namespace}
    return manifest
