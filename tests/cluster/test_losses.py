"""Nodes and pods of every kind go while a batch runs: each line is answered once, and right."""

import os
import uuid
from collections.abc import Iterator, Mapping

import pytest

from cluster.live import (
    RELEASE,
    SYSTEM,
    Deployment,
    is_ready,
    kubectl,
    read,
    run,
    wait_until,
)
from cluster.work import Lines, Rounds, work_goes_on
from glinthawk.bench.tally import Answer, Tally

CLUSTER = os.environ.get("CLUSTER", "").split()
LOST_S = 60.0
RECOVERED_S = 300.0
AT_ONCE = ("--grace-period=0", "--force", "--wait=false")
ROUND = 100
"""Lines of a batch that is given again and again: a short one, for its end is waited for."""

HELD = {"memoryTier": {"scaling": {"minReplicas": 3, "maxReplicas": 3}}}
"""As many workers as nodes, so that each node has something to lose."""


@pytest.fixture
def wide(demo: Deployment) -> Deployment:
    """Return the demo with a worker on each cpu node."""
    demo.apply(HELD)
    demo.await_workers(3)
    demo.await_settled()
    return demo


@pytest.fixture
def lost_nodes() -> Iterator[list[str]]:
    """Take a list of nodes that are lost; afterwards others stand in their place."""
    if not CLUSTER:
        pytest.skip("CLUSTER names no command that loses and joins nodes")
    lost: list[str] = []
    yield lost
    for name in lost:
        kubectl("delete", "node", name, "--ignore-not-found")
        if len(ready_nodes(pool_of(name))) < {"gpu": 2, "cpu": 3}[pool_of(name)]:
            join(pool_of(name))


def test_pods_of_each_kind_are_deleted(
    wide: Deployment, lines: Lines, here: Mapping[str, Answer], label: str
) -> None:
    with work_goes_on(wide, lines[:ROUND], here, label) as rounds:
        for component in ("attention", "stage", "gateway"):
            pod = wide.pods(component)[0]["metadata"]
            kubectl("delete", "pod", pod["name"], "--wait=false")
            await_gone(wide, component, pod["uid"])
            show(f"{component} deleted", wide.await_settled(RECOVERED_S))
        kill_operator()
        name = wide.pods("attention")[0]["metadata"]["name"]
        kubectl("delete", "pod", name, *AT_ONCE)
        show("operator and a worker killed", wide.await_settled(RECOVERED_S))
    assert_nothing_went_wrong(rounds)


def test_a_node_is_drained(
    wide: Deployment, lines: Lines, here: Mapping[str, Answer], label: str
) -> None:
    node = next(iter({*nodes_of(wide, "attention")} - {*nodes_of(wide, "gateway")}))
    with work_goes_on(wide, lines[:ROUND], here, label) as rounds:
        try:
            kubectl("drain", node, "--ignore-daemonsets", "--delete-emptydir-data")
            kill_operator()
            assert node not in nodes_of(wide, "attention")
            show("node drained", wide.await_settled(RECOVERED_S))
        finally:
            kubectl("uncordon", node)
    assert_nothing_went_wrong(rounds)


def test_a_cpu_node_is_lost(
    wide: Deployment, lost_nodes: list[str], lines: Lines, here: Mapping[str, Answer], label: str
) -> None:
    node = next(iter({*nodes_of(wide, "attention")} - {*nodes_of(wide, "gateway")}))
    with work_goes_on(wide, lines[:ROUND], here, label) as rounds:
        lose(node, lost_nodes)
        kill_operator()
        wait_until(lambda: node not in nodes_of(wide, "attention"), "workers move on")
        show("cpu node lost", wide.await_settled(RECOVERED_S))
    assert_nothing_went_wrong(rounds)


def test_a_gpu_node_is_lost_and_another_one_joins(
    wide: Deployment, lost_nodes: list[str], lines: Lines, here: Mapping[str, Answer], label: str
) -> None:
    stage = wide.pods("stage")[-1]
    node, uid = stage["spec"]["nodeName"], stage["metadata"]["uid"]
    first_event = len(wide.events())
    with work_goes_on(wide, lines[:ROUND], here, label) as rounds:
        lose(node, lost_nodes)
        await_gone(wide, "stage", uid)
        kill_operator()
        join("gpu")
        show("gpu node lost and joined", wide.await_settled(RECOVERED_S))
        assert node not in nodes_of(wide, "stage")
    assert_nothing_went_wrong(rounds)
    told = {one["reason"] for one in wide.events()[first_event:]}
    assert {"StageOnLostNode", "CacheOnLostNode"} <= told


def lose(node: str, lost_nodes: list[str]) -> None:
    """Have a node gone at once, and wait until the cluster knows."""
    lost_nodes.append(node)
    run(*CLUSTER, "lose", node)
    show(f"{node} not ready", wait_until(lambda: not is_ready(read("node", node)), "lost", LOST_S))


def join(pool: str) -> None:
    run(*CLUSTER, "join", f"{pool}-{uuid.uuid4().hex[:6]}")


def kill_operator() -> None:
    label = f"app.kubernetes.io/instance={RELEASE}"
    kubectl("delete", "pod", "--selector", label, *AT_ONCE, namespace=SYSTEM)


def await_gone(demo: Deployment, component: str, uid: str) -> None:
    """Wait until a pod ends, or another one stands in its place."""

    def is_gone() -> bool:
        return uid not in {pod["metadata"]["uid"] for pod in demo.pods(component)}

    wait_until(is_gone, f"a pod of {component} goes")


def nodes_of(demo: Deployment, component: str) -> list[str]:
    return [str(pod["spec"].get("nodeName", "")) for pod in demo.pods(component)]


def pool_of(node: str) -> str:
    return node.partition("-")[0]


def ready_nodes(pool: str) -> list[str]:
    nodes = read("nodes", "--selector", f"pool={pool}")
    return [node["metadata"]["name"] for node in nodes if is_ready(node)]


def show(what: str, seconds: float) -> None:
    print(f"{what}: {seconds:.0f} s")


def assert_nothing_went_wrong(rounds: Rounds) -> None:
    print(f"rounds took {', '.join(f'{took:.0f}' for took in rounds.took_s)} s")
    assert rounds.tally == Tally()
