"""The operator as a process, against a real API server with its real controllers.

Pods are made by the controllers; that they run is said by `stand_ins`.
"""

import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from kubernetes import client, config

from cluster.control_plane import ControlPlane, NoControlPlane, open_control_plane
from cluster.faults import FaultyProxy
from cluster.stand_ins import Fleet, Kubelets, StandInGateway

ROOT = Path(__file__).parents[2]
WAIT_S = 180.0
REST_S = 15.0
GIB = 1 << 30
CONTROLLERS = ",".join(
    (
        *("deployment-controller", "replicaset-controller", "statefulset-controller"),
        *("garbage-collector-controller", "persistentvolumeclaim-protection-controller"),
    )
)
OWNED = (
    "statefulsets,deployments,services,configmaps,serviceaccounts,secrets,"
    "poddisruptionbudgets,networkpolicies"
)


def sample(name: str = "demo", **scaling: Any) -> dict[str, Any]:
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


class Operator:
    """The operator's process, which can be killed and started again."""

    def __init__(self, plane: ControlPlane, gateway: StandInGateway, log: Path) -> None:
        self._log = log.open("ab")
        self._environment = {
            **os.environ,
            "KUBECONFIG": str(plane.kubeconfig),
            "PYTHONPATH": str(ROOT / "operator"),
            "GLINTHAWK_OPERATOR_CONTROL_URL": gateway.url,
            "GLINTHAWK_OPERATOR_POLL_SECONDS": "1",
            "GLINTHAWK_OPERATOR_LEASE_SECONDS": "3",
            "GLINTHAWK_OPERATOR_HEALTH_PORT": "0",
            "GLINTHAWK_OPERATOR_METRICS_PORT": "0",
        }
        self._process: subprocess.Popen[bytes] | None = None

    def use(self, kubeconfig: Path) -> None:
        self._environment["KUBECONFIG"] = str(kubeconfig)

    def start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "glinthawk_operator"],
            env=self._environment,
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(30)
            except subprocess.TimeoutExpired:
                self.kill()
        self._log.close()


@contextmanager
def run_controllers(plane: ControlPlane, folder: Path) -> Iterator[None]:
    """Run the controllers that make pods and collect what is nobody's any more."""
    binary = Path(os.environ.get("KUBEBUILDER_ASSETS", "")) / "kube-controller-manager"
    if not binary.exists():
        raise NoControlPlane(f"there is no {binary}, which makes the pods")
    command = [
        str(binary),
        f"--kubeconfig={plane.kubeconfig}",
        f"--controllers={CONTROLLERS}",
        "--leader-elect=false",
        "--secure-port=0",
        "--bind-address=127.0.0.1",
    ]
    with (
        (folder / "controllers.log").open("wb") as log,
        subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT) as process,
    ):
        try:
            yield
        finally:
            process.terminate()


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    folder = tmp_path_factory.mktemp("control-plane")
    with ExitStack() as stack:
        try:
            plane = stack.enter_context(open_control_plane(folder))
            if not plane.is_own:
                raise NoControlPlane("a control plane of our own is needed: set KUBEBUILDER_ASSETS")
            stack.enter_context(run_controllers(plane, folder))
        except NoControlPlane as reason:
            pytest.skip(str(reason))
        plane.do("apply", "--server-side", "-f", str(ROOT / "crds"))
        wanted = "--for=condition=Established"
        plane.do("wait", wanted, "crd/glinthawkdeployments.glinthawk.dev", "--timeout=60s")
        yield plane


@pytest.fixture
def world(plane: ControlPlane, tmp_path: Path) -> Iterator[tuple[ControlPlane, Fleet, Operator]]:
    fleet = Fleet()
    configuration = client.Configuration()
    config.load_kube_config(str(plane.kubeconfig), client_configuration=configuration)
    api = client.ApiClient(configuration)
    gateway = StandInGateway(fleet)
    kubelets = Kubelets(client.CoreV1Api(api), fleet)
    operator = Operator(plane, gateway, tmp_path / "operator.log")
    try:
        yield plane, fleet, operator
    finally:
        plane.kubectl("delete", "ghd", "--all", "--wait=false")
        operator.close()
        wait_until(lambda: not left_over(plane), "nothing is left over")
        kubelets.close()
        gateway.close()
        print((tmp_path / "operator.log").read_text()[-6000:])


def wait_until(check: Callable[[], bool], what: str, timeout_s: float = WAIT_S) -> None:
    end = time.monotonic() + timeout_s
    while not check():
        assert time.monotonic() < end, f"not within {timeout_s} s: {what}"
        time.sleep(0.3)


def left_over(plane: ControlPlane) -> list[Any]:
    kinds = f"{OWNED},pods,persistentvolumeclaims"
    return list(plane.read(kinds, "-l", "app.kubernetes.io/name=glinthawk")["items"])


def resource(plane: ControlPlane, name: str = "demo") -> dict[str, Any]:
    return dict(plane.read("ghd", name))


def condition(plane: ControlPlane, kind: str, name: str = "demo") -> tuple[str, str, str]:
    for one in resource(plane, name).get("status", {}).get("conditions", []):
        if one["type"] == kind:
            return one["status"], one["reason"], one["message"]
    return "", "", ""


def await_ready(plane: ControlPlane, name: str = "demo") -> None:
    def is_ready() -> bool:
        status = resource(plane, name).get("status", {})
        return (
            condition(plane, "Ready", name)[0] == "True"
            and condition(plane, "Progressing", name)[0] == "False"
            and condition(plane, "Degraded", name)[0] == "False"
            and status["observedGeneration"] == resource(plane, name)["metadata"]["generation"]
        )

    try:
        wait_until(is_ready, "ready")
    except AssertionError as error:
        raise AssertionError(f"{error}: {resource(plane, name).get('status')}") from error


def snapshot(plane: ControlPlane) -> dict[str, tuple[str, str]]:
    """Return what is owned: by kind and name, what was applied, and the version."""
    items = plane.read(OWNED, "-l", "app.kubernetes.io/managed-by=glinthawk-operator")["items"]
    items += [resource(plane)]
    return {
        f"{one['kind']}/{one['metadata']['name']}": (
            one["metadata"].get("annotations", {}).get("glinthawk.dev/applied", ""),
            one["metadata"]["resourceVersion"],
        )
        for one in items
    }


def replicas(plane: ControlPlane, name: str = "demo") -> int:
    return int(plane.read("deployment", f"{name}-attention")["spec"]["replicas"])


World = tuple[ControlPlane, Fleet, Operator]


def test_converges_though_it_is_killed_and_writes_nothing_at_rest(world: World) -> None:
    plane, _, operator = world
    seed = random.Random(7)
    operator.start()
    plane.do("apply", "-f", "-", manifest=sample())
    for _ in range(4):
        time.sleep(seed.uniform(1.0, 4.0))
        operator.kill()
        operator.start()
    await_ready(plane)
    first = snapshot(plane)
    assert len(first) == 22, sorted(first)
    operator.kill()
    operator.start()
    time.sleep(REST_S)
    assert snapshot(plane) == first
    status = resource(plane)["status"]
    assert status["memoryTier"]["readyReplicas"] == 1
    assert status["gpuTier"]["readyStages"] == 2
    assert "finalizers" not in resource(plane)["metadata"]


def test_the_memory_tier_follows_demand_and_drains_who_goes(world: World) -> None:
    plane, fleet, operator = world
    operator.start()
    plane.do("apply", "-f", "-", manifest=sample())
    await_ready(plane)
    fleet.demanded = 2 * GIB
    wait_until(lambda: replicas(plane) == 3, "three workers")
    await_ready(plane)
    fleet.holds_drains = True
    fleet.demanded = 0
    wait_until(lambda: resource(plane)["status"]["memoryTier"]["draining"] >= 1, "a worker drains")
    wait_until(lambda: "draining" in str(fleet.workers), "the gateway was asked")
    assert replicas(plane) == 3  # until it is drained, it stays
    fleet.demanded = 2 * GIB
    wait_until(lambda: bool(fleet.cancelled), "demand that returned cancels the drain")
    fleet.holds_drains = False
    fleet.demanded = 0
    operator.kill()
    operator.start()
    wait_until(lambda: replicas(plane) == 1, "one worker again")
    wait_until(
        lambda: (
            len(plane.read("pods", "-l", "app.kubernetes.io/component=attention")["items"]) == 1
        ),
        "one pod",
    )
    left = {pod["metadata"]["name"] for pod in plane.read("pods")["items"]}
    assert len(set(fleet.drained) - left) == 2  # both that went were drained
    decision = resource(plane)["status"]["memoryTier"]["lastDecision"]
    assert decision["toReplicas"] == 1
    events = {one["reason"] for one in plane.read("events")["items"]}
    assert "Scaled" in events


def test_external_and_manual_replicas_are_followed(world: World) -> None:
    plane, fleet, operator = world
    operator.start()
    manifest = sample(mode="External")
    manifest["spec"]["memoryTier"]["replicas"] = 1
    plane.do("apply", "-f", "-", manifest=manifest)
    await_ready(plane)
    fleet.demanded = 3 * GIB
    plane.do("scale", "ghd/demo", "--replicas=2")
    wait_until(lambda: replicas(plane) == 2, "two workers")
    # Whoever writes the child's replicas is corrected.
    plane.do("scale", "deployment/demo-attention", "--replicas=5")
    wait_until(lambda: replicas(plane) == 2, "two workers again")
    plane.do("apply", "-f", "-", manifest=sample(mode="Auto"))
    wait_until(lambda: replicas(plane) == 3, "Auto takes over")


def test_an_image_that_is_not_there_touches_nothing(world: World) -> None:
    plane, _, operator = world
    operator.start()
    plane.do("apply", "-f", "-", manifest=sample())
    await_ready(plane)
    before = plane.read("pods", "-l", "app.kubernetes.io/component!=check")["items"]
    bad = sample()
    for tier in ("gateway", "gpuTier", "memoryTier"):
        bad["spec"].setdefault(tier, {})["image"] = "missing:1"
    plane.do("apply", "-f", "-", manifest=bad)
    wait_until(lambda: condition(plane, "Degraded")[1] == "ImageCheckFailed", "the check failed")
    assert "missing:1" in condition(plane, "Degraded")[2]
    assert condition(plane, "Ready")[0] == "True"
    after = plane.read("pods", "-l", "app.kubernetes.io/component!=check")["items"]
    assert {pod["metadata"]["uid"] for pod in before} == {pod["metadata"]["uid"] for pod in after}
    good = sample()
    for tier in ("gateway", "gpuTier", "memoryTier"):
        good["spec"].setdefault(tier, {})["image"] = "good:2"
    plane.do("apply", "-f", "-", manifest=good)
    wait_until(
        lambda: (
            {pod["spec"]["containers"][0]["image"] for pod in plane.read("pods")["items"]}
            == {"good:2"}
        ),
        "every pod has the new image",
    )
    await_ready(plane)
    wait_until(
        lambda: not plane.read("pods", "-l", "app.kubernetes.io/component=check")["items"],
        "check pods are gone",
    )


def test_only_the_pods_whose_settings_changed_are_replaced(world: World) -> None:
    plane, _, operator = world
    operator.start()
    plane.do("apply", "-f", "-", manifest=sample())
    await_ready(plane)

    def pods(component: str) -> set[str]:
        label = f"app.kubernetes.io/component={component}"
        return {one["metadata"]["uid"] for one in plane.read("pods", "-l", label)["items"]}

    before = {component: pods(component) for component in ("gateway", "stage", "attention")}
    changed = sample()
    changed["spec"]["gpuTier"]["maxRows"] = 512
    plane.do("apply", "-f", "-", manifest=changed)
    wait_until(
        lambda: len(pods("stage")) == 2 and not pods("stage") & before["stage"], "new stages"
    )
    await_ready(plane)
    assert pods("gateway") == before["gateway"]
    assert pods("attention") == before["attention"]


def test_what_is_deleted_leaves_nothing_and_needs_no_operator(world: World) -> None:
    plane, _, operator = world
    operator.start()
    plane.do("apply", "-f", "-", manifest=sample())
    await_ready(plane)
    operator.kill()
    plane.do("delete", "ghd", "demo", "--wait=false")
    wait_until(lambda: not left_over(plane), "nothing is left")


def test_an_api_server_that_fails_now_and_then_only_delays(world: World) -> None:
    plane, fleet, operator = world
    proxy = FaultyProxy(plane.kubeconfig, share=0.2, seed=11)
    try:
        operator.use(proxy.kubeconfig)
        operator.start()
        plane.do("apply", "-f", "-", manifest=sample())
        await_ready(plane)
        fleet.demanded = 2 * GIB
        wait_until(lambda: replicas(plane) == 3, "three workers")
        operator.kill()
        operator.start()
        fleet.demanded = 0
        wait_until(lambda: replicas(plane) == 1, "one worker again")
        await_ready(plane)
        assert len(snapshot(plane)) == 22
        assert proxy.num_faults > 5
    finally:
        proxy.close()


def test_two_operators_are_one_that_acts(world: World, tmp_path: Path) -> None:
    plane, fleet, operator = world
    gateway = StandInGateway(fleet)
    second = Operator(plane, gateway, tmp_path / "second.log")
    try:
        operator.start()
        second.start()
        plane.do("apply", "-f", "-", manifest=sample())
        await_ready(plane)
        holder = plane.read("lease", "glinthawk-operator")["spec"]["holderIdentity"]
        operator.kill()
        fleet.demanded = 2 * GIB
        wait_until(lambda: replicas(plane) == 3, "the other one acts, or goes on")
        assert holder
    finally:
        second.close()
        gateway.close()
