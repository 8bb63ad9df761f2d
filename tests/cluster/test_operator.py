"""The operator as a process, against a real API server with its real controllers.

Pods are made by the controllers; that they run is said by `kubelets`.
"""

import random
import time
from pathlib import Path

from cluster.faults import FaultyProxy
from cluster.operator_process import Operator
from cluster.rights import USER
from cluster.world import GIB, World, sample, wait_until

REST_S = 15.0
NUM_OWNED = 22
"""Objects of a resource of two stages, and the resource."""

MAX_READS_AT_START = 5
"""Of one resource: its secrets, and what the spec names."""


def test_converges_though_it_is_killed_and_writes_nothing_at_rest(world: World) -> None:
    operator, seed = world.operator, random.Random(7)
    operator.start()
    world.apply(sample())
    for _ in range(4):
        time.sleep(seed.uniform(1.0, 4.0))
        operator.kill()
        operator.start()
    world.await_ready()
    first = world.snapshot()
    assert len(first) == NUM_OWNED, sorted(first)
    operator.kill()
    world.audit.skip()
    operator.start()
    time.sleep(REST_S)
    assert world.snapshot() == first
    asked = world.audit.read(USER)
    assert not [one for one in asked if one.is_write and one.resource != "leases"]
    of_resources = [one for one in asked if one.verb == "get" and one.resource != "leases"]
    assert len([one for one in of_resources if one.resource]) <= MAX_READS_AT_START, of_resources
    status = world.resource()["status"]
    assert status["memoryTier"]["readyReplicas"] == 1
    assert status["gpuTier"]["readyStages"] == 2
    assert "finalizers" not in world.resource()["metadata"]


def test_an_image_that_is_not_there_touches_nothing(world: World) -> None:
    world.operator.start()
    world.apply(sample())
    world.await_ready()
    components = ("gateway", "stage", "attention")
    before = {pod["metadata"]["uid"] for one in components for pod in world.pods(one)}
    bad = sample()
    for tier in ("gateway", "gpuTier", "memoryTier"):
        bad["spec"].setdefault(tier, {})["image"] = "missing:1"
    world.apply(bad)
    wait_until(lambda: world.condition("Degraded")[1] == "ImageCheckFailed", "the check failed")
    assert "missing:1" in world.condition("Degraded")[2]
    assert world.condition("Ready")[0] == "True"
    assert {pod["metadata"]["uid"] for one in components for pod in world.pods(one)} == before
    good = sample()
    for tier in ("gateway", "gpuTier", "memoryTier"):
        good["spec"].setdefault(tier, {})["image"] = "good:2"
    world.apply(good)

    def images() -> set[str]:
        pods = world.plane.read("pods")["items"]
        return {pod["spec"]["containers"][0]["image"] for pod in pods}

    wait_until(lambda: images() == {"good:2"}, "every pod has the new image")
    world.await_ready()
    wait_until(lambda: not world.pods("check"), "check pods are gone")


def test_only_the_pods_whose_settings_changed_are_replaced(world: World) -> None:
    world.operator.start()
    world.apply(sample())
    world.await_ready()

    def pods(component: str) -> set[str]:
        return {one["metadata"]["uid"] for one in world.pods(component)}

    before = {component: pods(component) for component in ("gateway", "stage", "attention")}
    changed = sample()
    changed["spec"]["gpuTier"]["maxRows"] = 512
    world.apply(changed)
    wait_until(
        lambda: len(pods("stage")) == 2 and not pods("stage") & before["stage"], "new stages"
    )
    world.await_ready()
    assert pods("gateway") == before["gateway"]
    assert pods("attention") == before["attention"]


def test_what_is_deleted_leaves_nothing_and_needs_no_operator(world: World) -> None:
    world.operator.start()
    world.apply(sample())
    world.await_ready()
    world.operator.kill()
    world.plane.do("delete", "ghd", "demo", "--wait=false")
    wait_until(lambda: not world.left_over(), "nothing is left")


def test_an_api_server_that_fails_now_and_then_only_delays(world: World) -> None:
    operator, fleet = world.operator, world.fleet
    proxy = FaultyProxy(world.operator_kubeconfig, share=0.2, seed=11)
    try:
        operator.use(proxy.kubeconfig)
        operator.start()
        world.apply(sample())
        world.await_ready()
        fleet.demanded = 2 * GIB
        world.await_replicas(3)
        operator.kill()
        operator.start()
        fleet.demanded = 0
        world.await_replicas(1)
        world.await_ready()
        assert len(world.snapshot()) == NUM_OWNED
        assert proxy.num_faults > 5
    finally:
        proxy.close()


def test_of_two_operators_one_acts_and_the_other_takes_over(world: World, tmp_path: Path) -> None:
    second = Operator(world.operator_kubeconfig, world.gateway.url, tmp_path / "second.log")
    try:
        world.operator.start()
        second.start()
        world.apply(sample())
        world.await_ready()
        lease = world.plane.read("lease", "glinthawk-operator", "-n", "glinthawk-system")
        leads = [
            bool(one.scrape()["glinthawk_operator_leader"][()]) for one in (world.operator, second)
        ]
        assert sorted(leads) == [False, True], lease["spec"]
        (world.operator if leads[0] else second).kill()
        world.fleet.demanded = 2 * GIB
        world.await_replicas(3)
    finally:
        second.close()


def test_two_operators_that_both_act_make_the_same_and_then_rest(
    world: World, tmp_path: Path
) -> None:
    """Two installations that watch the same namespaces, each with a lease of its own."""
    second = Operator(
        world.operator_kubeconfig,
        world.gateway.url,
        tmp_path / "second.log",
        settings={"lease_name": "another"},
    )
    try:
        world.operator.start()
        second.start()
        world.apply(sample())
        world.await_ready()
        world.fleet.demanded = 2 * GIB
        world.await_replicas(3)
        world.await_ready()
        for one in (world.operator, second):
            assert one.scrape()["glinthawk_operator_leader"][()] == 1
        time.sleep(REST_S)  # figures and decisions settle
        first = world.snapshot()
        assert len(first) == NUM_OWNED
        world.audit.skip()
        time.sleep(REST_S)
        written = [one for one in world.audit.read(USER) if one.is_write]
        assert not [one for one in written if one.resource != "leases"], written
        assert world.snapshot() == first
        world.fleet.demanded = 0
        world.await_replicas(1)
    finally:
        second.close()
