"""The operator's rights: each one that the chart gives is used, by the API server's audit log, and
none is missing. One tour goes past everything that needs a right."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from chart_runs import HELM
from cluster.audit import Request, Right, count_by
from cluster.kubelets import RAN, make_node
from cluster.operator_process import Plane
from cluster.rights import (
    NAMESPACE,
    USER,
    give_rights,
    list_rights,
    render_rights,
)
from cluster.world import GIB, World, open_world, sample, wait_until

FORBIDDEN = 403
CACHE = "cache-demo-stage-0"
MONITORS = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "servicemonitors.monitoring.coreos.com"},
    "spec": {
        "group": "monitoring.coreos.com",
        "scope": "Namespaced",
        "names": {
            "kind": "ServiceMonitor",
            "plural": "servicemonitors",
            "singular": "servicemonitor",
        },
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "schema": {
                    "openAPIV3Schema": {
                        "type": "object",
                        "x-kubernetes-preserve-unknown-fields": True,
                    }
                },
            }
        ],
    },
}
CLASSES = (
    {"kind": "RuntimeClass", "apiVersion": "node.k8s.io/v1", "handler": "runc"},
    {"kind": "PriorityClass", "apiVersion": "scheduling.k8s.io/v1", "value": 1000},
)
VOLUME = {
    "apiVersion": "v1",
    "kind": "PersistentVolume",
    "metadata": {"name": "tour"},
    "spec": {
        "capacity": {"storage": "1Gi"},
        "accessModes": ["ReadWriteOnce"],
        "hostPath": {"path": "/tour"},
        "nodeAffinity": {
            "required": {
                "nodeSelectorTerms": [
                    {
                        "matchExpressions": [
                            {
                                "key": "kubernetes.io/hostname",
                                "operator": "In",
                                "values": ["gone"],
                            }
                        ]
                    }
                ]
            }
        },
    },
}
ELSEWHERE = {
    "conditions": [
        {
            "type": "PodScheduled",
            "status": "False",
            "reason": "Unschedulable",
            "message": "0/1 nodes are available: 1 node(s) had volume node affinity conflict.",
            "lastTransitionTime": RAN,
        }
    ]
}


class Tour:
    """What a resource goes through; each step needs rights of its own."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._manifest = sample()
        self._spec: dict[str, Any] = self._manifest["spec"]
        self._spec["gpuTier"] |= {"runtimeClassName": "tour", "priorityClassName": "tour"}

    def begin(self) -> None:
        """Be made, with a monitor, and of classes that are looked up; no lease is there yet."""
        lease = ("lease", "glinthawk-operator", "--namespace", NAMESPACE)
        self._world.plane.do("delete", *lease, "--ignore-not-found")
        self._world.operator.start()
        self._apply()

    def scale(self) -> None:
        """Grow, and shrink by drains."""
        self._world.fleet.demanded = 2 * GIB
        self._world.await_replicas(3)
        self._world.await_ready()
        self._world.fleet.demanded = 0
        self._world.await_replicas(1)

    def update(self) -> None:
        """Change the images, which are checked first."""
        for tier in ("gateway", "gpuTier", "memoryTier"):
            self._spec[tier]["image"] = "new:2"
        self._apply()
        wait_until(lambda: not self._world.pods("check"), "checks are gone")

    def do_without(self) -> None:
        """Want no policies, and a monitor no longer."""
        self._spec["networkPolicy"] = {"enabled": False}
        self._spec["metrics"] = {"serviceMonitor": "Disabled"}
        self._apply()
        wait_until(
            lambda: not self._world.plane.read("networkpolicies")["items"], "no policy is left"
        )

    def lose_a_cache(self) -> None:
        """Be held up by a cache on a node that is gone."""
        world = self._world
        make_node(world.api, "left")
        world.apply(VOLUME)
        bound = json.dumps({"spec": {"volumeName": "tour"}})
        world.plane.do("patch", "pvc", CACHE, "--type=merge", f"--patch={bound}")
        before = world.plane.read("pvc", CACHE)["metadata"]["uid"]
        world.fleet.troubles["stage"] = ELSEWHERE
        world.plane.do("delete", "pod", "demo-stage-0")

        def is_new() -> bool:
            found = world.plane.kubectl("get", "pvc", CACHE, "-o", "jsonpath={.metadata.uid}")
            return found.returncode == 0 and found.stdout not in ("", before)

        wait_until(is_new, "a new cache")
        free = json.dumps({"metadata": {"finalizers": None}})  # nobody else takes it away here
        world.plane.do("patch", "pv", "tour", "--type=merge", f"--patch={free}")
        world.plane.do("delete", "pv", "tour", "--wait=false")
        world.fleet.troubles.clear()
        world.await_ready()

    def _apply(self) -> None:
        self._world.apply(self._manifest)
        self._world.await_ready()


@pytest.fixture
def classes(plane: Plane) -> Iterator[None]:
    """What a spec may name, and the kind of monitors."""
    server = plane.plane
    server.do("apply", "-f", "-", manifest=MONITORS)
    server.do("wait", "--for=condition=Established", f"crd/{MONITORS['metadata']['name']}")
    for one in CLASSES:
        server.do("apply", "-f", "-", manifest={**one, "metadata": {"name": "tour"}})
    yield
    for one in CLASSES:
        server.do("delete", one["kind"], "tour")
    server.do("delete", "crd", MONITORS["metadata"]["name"])


def rights_used(asked: list[Request]) -> set[Right]:
    """Return the rights that some requests needed; none was missing."""
    refused = [one for one in asked if one.code == FORBIDDEN]
    assert not refused, refused
    return {right for one in asked for right in one.rights}


@pytest.mark.usefixtures("classes")
@pytest.mark.timeout(900)
def test_the_role_grants_what_is_used_and_nothing_else(plane: Plane, tmp_path: Path) -> None:
    with open_world(plane, tmp_path) as world:
        tour = Tour(world)
        tour.begin()
        tour.scale()
        tour.update()
        tour.do_without()
        tour.lose_a_cache()
        asked = world.audit.read(USER)
    used, granted = rights_used(asked), list_rights(render_rights())
    assert used - granted == set()
    assert granted - used == set(), "granted and never used"
    assert count_by(asked)["delete servicemonitors"] == 1  # no watch says that it is gone


@pytest.mark.usefixtures("classes")
@pytest.mark.timeout(900)
def test_an_operator_of_one_namespace_reads_nothing_beyond_it(plane: Plane, tmp_path: Path) -> None:
    if HELM is None:
        pytest.skip("there is no helm, which renders the roles of one namespace")
    setting = "operator.namespaces={default}"
    server = plane.plane
    for one in render_rights():
        if one["kind"].startswith("ClusterRole"):
            server.do("delete", one["kind"], one["metadata"]["name"])
    try:
        kubeconfig = give_rights(server, tmp_path, setting)
        one_namespace = Plane(server, kubeconfig)
        with open_world(one_namespace, tmp_path, settings={"namespaces": "default"}) as world:
            tour = Tour(world)
            tour.begin()
            tour.scale()
            tour.update()
            tour.do_without()
            asked = world.audit.read(USER)
    finally:
        give_rights(server, tmp_path)
    used, granted = rights_used(asked), list_rights(render_rights(setting))
    assert used - granted == set()
    # Without a right to nodes, none is called lost, and no cache is given up.
    assert {right.resource for right in granted - used} == {"persistentvolumeclaims"}
    assert not {right.resource for right in granted} & {"nodes", "customresourcedefinitions"}
