"""The operator as a process on a control plane of its own, with a real Prometheus over it.

The API server and its controllers are real; that pods run, and what gateways say, is stood in for.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kubernetes import client, config

from cluster.control_plane import ControlPlane, NoControlPlane, open_control_plane
from cluster.faults import FaultyProxy
from cluster.kubelets import Kubelets
from cluster.stand_ins import Fleet, StandInGateway
from glinthawk.bench.fleet import find_ports
from prometheus_runs import Prometheus, find_prometheus, prometheus_in, wait_until

ROOT = Path(__file__).resolve().parents[1]
CRD = "crd/glinthawkdeployments.glinthawk.dev"
CONTROLLERS = "deployment-controller,replicaset-controller,statefulset-controller"
GIB = 1 << 30
STOP_S = 30.0


@dataclass(frozen=True)
class WatchedOperator:
    """See the module.

    proxy: between the operator and the API server. gateway: of all resources.
    """

    plane: ControlPlane
    prometheus: Prometheus
    proxy: FaultyProxy
    fleet: Fleet
    gateway: StandInGateway

    def apply(self, name: str, **tiers: Any) -> None:
        """Make a resource, or change it; its tiers' fields are merged into those of a small one."""
        spec: dict[str, Any] = {
            "model": {"source": "hf://acme/smol"},
            "gpuTier": {"stages": 2, "device": "cpu"},
            "memoryTier": {
                "kvCache": {"memory": "1Gi"},
                "scaling": {
                    "minReplicas": 1,
                    "maxReplicas": 4,
                    "scaleUp": {"periodSeconds": 1},
                    "scaleDown": {"stabilizationWindowSeconds": 2, "periodSeconds": 1},
                },
            },
        }
        for tier, fields in tiers.items():
            spec[tier] = {**spec.get(tier, {}), **fields}
        metadata = {"name": name, "namespace": "default"}
        kind = {"apiVersion": "glinthawk.dev/v1alpha1", "kind": "GlinthawkDeployment"}
        self.plane.do("apply", "-f", "-", manifest={**kind, "metadata": metadata, "spec": spec})

    def await_status(self, name: str, condition: str, status: str) -> None:
        """Wait until a condition of a resource has a status."""

        def has_it() -> bool:
            known = self.plane.read("ghd", name).get("status", {}).get("conditions", [])
            return any((one["type"], one["status"]) == (condition, status) for one in known)

        wait_until(has_it, f"{name} has {condition} {status}")

    def await_figure(self, query: str) -> None:
        """Wait until a query of its figures gives something."""
        wait_until(lambda: self.prometheus.has_data(query), query)


@contextmanager
def watched_operator(folder: Path) -> Iterator[WatchedOperator]:
    """Yield an operator that acts; nothing of it is left afterwards.

    Raises:
        NoControlPlane: the binaries of a control plane are not there.
    """
    binary = find_prometheus()
    assert binary is not None
    with ExitStack() as stack:
        plane = stack.enter_context(open_control_plane(folder))
        if not plane.is_own:
            raise NoControlPlane("a control plane of our own is needed: set KUBEBUILDER_ASSETS")
        stack.enter_context(_run(_controllers(plane), folder / "controllers.log"))
        plane.do("apply", "--server-side", "--filename", str(ROOT / "crds"))
        plane.do("wait", "--for=condition=Established", CRD, "--timeout=60s")
        proxy = FaultyProxy(plane.kubeconfig, share=0.0, seed=3)
        stack.callback(proxy.close)
        fleet = Fleet()
        gateway = StandInGateway(fleet)
        stack.callback(gateway.close)
        kubelets = Kubelets(_administrator(plane), fleet)
        stack.callback(kubelets.close)
        (port,) = find_ports(1)
        settings = {
            "control_url": gateway.url,
            "poll_seconds": "1",
            "lease_seconds": "3",
            "health_port": "0",
            "metrics_port": str(port),
            "host": "127.0.0.1",
        }
        environment = {
            f"GLINTHAWK_OPERATOR_{key.upper()}": value for key, value in settings.items()
        }
        environment |= {"KUBECONFIG": str(proxy.kubeconfig), "PYTHONPATH": str(ROOT / "operator")}
        command = [sys.executable, "-m", "glinthawk_operator"]
        stack.enter_context(_run(command, folder / "operator.log", environment))
        prometheus = stack.enter_context(prometheus_in(folder, binary))
        prometheus.watch(port, {})
        watched = WatchedOperator(plane, prometheus, proxy, fleet, gateway)
        watched.await_figure("glinthawk_operator_leader == 1")
        yield watched


def _controllers(plane: ControlPlane) -> list[str]:
    """Return the command of the controllers that make pods."""
    binary = Path(os.environ["KUBEBUILDER_ASSETS"]) / "kube-controller-manager"
    if not binary.exists():
        raise NoControlPlane(f"there is no {binary}, which makes the pods")
    options = {"kubeconfig": plane.kubeconfig, "controllers": CONTROLLERS, "secure-port": 0}
    options |= {"leader-elect": "false", "bind-address": "127.0.0.1"}
    return [str(binary), *(f"--{name}={value}" for name, value in options.items())]


def _administrator(plane: ControlPlane) -> client.CoreV1Api:
    configuration = client.Configuration()
    config.load_kube_config(str(plane.kubeconfig), client_configuration=configuration)
    return client.CoreV1Api(client.ApiClient(configuration))


@contextmanager
def _run(
    command: list[str], log: Path, environment: dict[str, str] | None = None
) -> Iterator[None]:
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            env={**os.environ, **(environment or {})},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
