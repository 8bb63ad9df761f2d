"""One test's world: the operator as a process, a control plane, stand-ins for machines, and words
to ask how a resource stands."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kubernetes import client, config

from cluster.audit import AuditLog
from cluster.control_plane import ControlPlane
from cluster.kubelets import Kubelets
from cluster.operator_process import Operator, Plane
from cluster.stand_ins import Fleet, StandInGateway

WAIT_S = 180.0
GIB = 1 << 30
OWNED = (
    "statefulsets,deployments,services,configmaps,serviceaccounts,secrets,"
    "poddisruptionbudgets,networkpolicies"
)
OURS = "app.kubernetes.io/managed-by=glinthawk-operator"


def sample(name: str = "demo", **scaling: Any) -> dict[str, Any]:
    """Return a small resource: two stages, one to three workers of 1 GiB."""
    return {
        "apiVersion": "glinthawk.dev/v1alpha1",
        "kind": "GlinthawkDeployment",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "model": {"source": "hf://acme/smol", "dtype": "float32"},
            "gpuTier": {"stages": 2, "device": "cpu"},
            "gateway": {"storage": {"whenDeleted": "Delete"}},
            "memoryTier": {
                "kvCache": {"memory": "1Gi"},
                "scaling": {
                    "minReplicas": 1,
                    "maxReplicas": 3,
                    "scaleUp": {"periodSeconds": 1},
                    "scaleDown": {
                        "stabilizationWindowSeconds": 2,
                        "periodSeconds": 1,
                        "drainTimeoutSeconds": 120,
                    },
                    **scaling,
                },
            },
        },
    }


def wait_until(check: Callable[[], bool], what: str, timeout_s: float = WAIT_S) -> None:
    """Wait until something holds; AssertionError after timeout_s."""
    end = time.monotonic() + timeout_s
    while not check():
        assert time.monotonic() < end, f"not within {timeout_s} s: {what}"
        time.sleep(0.3)


@dataclass
class World:
    """See the module. Resources are called "demo" where no other name is given."""

    plane: ControlPlane
    operator_kubeconfig: Path
    fleet: Fleet
    gateway: StandInGateway
    api: client.CoreV1Api
    operator: Operator
    audit: AuditLog

    def apply(self, manifest: Mapping[str, Any]) -> None:
        """Make an object say what a manifest says."""
        self.plane.do("apply", "-f", "-", manifest=manifest)

    def resource(self, name: str = "demo") -> dict[str, Any]:
        """Return a resource."""
        return dict(self.plane.read("ghd", name))

    def condition(self, kind: str, name: str = "demo") -> tuple[str, str, str]:
        """Return status, reason and message of a condition, empty while there is none."""
        for one in self.resource(name).get("status", {}).get("conditions", []):
            if one["type"] == kind:
                return one["status"], one["reason"], one["message"]
        return "", "", ""

    def events(self, reason: str) -> list[str]:
        """Return what Events of a reason say."""
        found = self.plane.read("events.events.k8s.io")["items"]
        return [one["note"] for one in found if one["reason"] == reason]

    def pods(self, component: str) -> list[dict[str, Any]]:
        """Return the pods of a component that are not ending."""
        label = f"app.kubernetes.io/component={component}"
        found = self.plane.read("pods", "-l", label)["items"]
        return [one for one in found if "deletionTimestamp" not in one["metadata"]]

    def replicas(self, name: str = "demo") -> int:
        """Return how many workers the Deployment is to have."""
        return int(self.plane.read("deployment", f"{name}-attention")["spec"]["replicas"])

    def await_ready(self, name: str = "demo") -> None:
        """Wait until a resource is ready, rolled out, not degraded, and says so of its newest."""

        def is_ready() -> bool:
            body = self.resource(name)
            status = body.get("status", {})
            answers = {one["type"]: one["status"] for one in status.get("conditions", [])}
            return (
                answers.get("Ready") == "True"
                and answers.get("Progressing") == "False"
                and answers.get("Degraded") == "False"
                and status["observedGeneration"] == body["metadata"]["generation"]
            )

        try:
            wait_until(is_ready, "ready")
        except AssertionError as error:
            raise AssertionError(f"{error}: {self.resource(name).get('status')}") from error

    def await_replicas(self, count: int) -> None:
        """Wait until the Deployment is to have so many workers."""
        wait_until(lambda: self.replicas() == count, f"{count} workers")

    def snapshot(self) -> dict[str, tuple[str, str]]:
        """Return what is owned: by kind and name, what was applied, and the version."""
        items = self.plane.read(OWNED, "-l", OURS)["items"]
        items += [self.resource()]
        return {
            f"{one['kind']}/{one['metadata']['name']}": (
                one["metadata"].get("annotations", {}).get("glinthawk.dev/applied", ""),
                one["metadata"]["resourceVersion"],
            )
            for one in items
        }

    def left_over(self) -> list[Any]:
        """Return what there is of any resource."""
        kinds = f"{OWNED},pods,persistentvolumeclaims"
        return list(self.plane.read(kinds, "-l", "app.kubernetes.io/name=glinthawk")["items"])


@contextmanager
def open_world(
    plane: Plane,
    folder: Path,
    *,
    num_nodes: int = 0,
    waits_for_scheduler: bool = False,
    settings: Mapping[str, str] | None = None,
) -> Iterator[World]:
    """Yield a world on a control plane; the operator is not started. Nothing is left behind.

    num_nodes, waits_for_scheduler: see `Kubelets`. settings: of the operator.
    """
    configuration = client.Configuration()
    config.load_kube_config(str(plane.plane.kubeconfig), client_configuration=configuration)
    api = client.CoreV1Api(client.ApiClient(configuration))
    assert plane.plane.audit_log is not None
    log = folder / "operator.log"
    fleet = Fleet()
    with ExitStack() as stack:
        gateway = StandInGateway(fleet)
        stack.callback(gateway.close)
        kubelets = Kubelets(
            api, fleet, num_nodes=num_nodes, waits_for_scheduler=waits_for_scheduler
        )
        stack.callback(kubelets.close)
        operator = Operator(plane.operator_kubeconfig, gateway.url, log, settings=settings)
        stack.callback(operator.close)
        audit = AuditLog(plane.plane.audit_log)
        audit.skip()
        world = World(plane.plane, plane.operator_kubeconfig, fleet, gateway, api, operator, audit)
        try:
            yield world
        finally:
            plane.plane.kubectl("delete", "ghd", "--all", "--wait=false")
            operator.close()
            wait_until(lambda: not world.left_over(), "nothing is left over")
            plane.plane.kubectl("delete", "nodes,events", "--all", "--wait=false")
            print(log.read_text(encoding="utf-8")[-6000:])
