"""The memory tier as the operator scales it, on a real API server: who goes, stays and waits."""

import time

from cluster.kubelets import RAN
from cluster.world import GIB, World, sample, wait_until

REST_S = 10.0
NO_ROOM = {
    "conditions": [
        {
            "type": "PodScheduled",
            "status": "False",
            "reason": "Unschedulable",
            "message": "0/2 nodes are available: 2 Insufficient memory.",
            "lastTransitionTime": RAN,
        }
    ]
}


def test_the_memory_tier_follows_demand_and_drains_who_goes(world: World) -> None:
    operator, fleet = world.operator, world.fleet
    operator.start()
    world.apply(sample())
    world.await_ready()
    fleet.demanded = 2 * GIB
    world.await_replicas(3)
    world.await_ready()
    fleet.holds_drains = True
    fleet.demanded = 0
    wait_until(lambda: world.resource()["status"]["memoryTier"]["draining"] >= 1, "a worker drains")
    wait_until(lambda: "draining" in str(fleet.workers), "the gateway was asked")
    assert world.replicas() == 3  # until it is drained, it stays
    fleet.demanded = 2 * GIB
    wait_until(lambda: bool(fleet.cancelled), "demand that returned cancels the drain")
    wait_until(lambda: "draining" not in str(fleet.workers), "no drain is left")
    fleet.holds_drains = False
    fleet.demanded = 0
    operator.kill()
    operator.start()
    world.await_replicas(1)
    wait_until(lambda: len(world.pods("attention")) == 1, "one pod")
    left = {pod["metadata"]["name"] for pod in world.pods("attention")}
    assert len(set(fleet.drained) - left) == 2  # both that went were drained
    decision = world.resource()["status"]["memoryTier"]["lastDecision"]
    assert decision["toReplicas"] == 1
    assert world.events("Scaled")


def test_external_and_manual_replicas_are_followed(world: World) -> None:
    world.operator.start()
    manifest = sample(mode="External")
    manifest["spec"]["memoryTier"]["replicas"] = 1
    world.apply(manifest)
    world.await_ready()
    world.fleet.demanded = 3 * GIB
    world.plane.do("scale", "ghd/demo", "--replicas=2")
    world.await_replicas(2)
    # Whoever writes the child's replicas is corrected.
    world.plane.do("scale", "deployment/demo-attention", "--replicas=5")
    world.await_replicas(2)
    world.apply(sample(mode="Auto"))
    world.await_replicas(3)


def test_a_drain_past_its_deadline_is_taken_back_and_reported(world: World) -> None:
    fleet = world.fleet
    scaling = sample()["spec"]["memoryTier"]["scaling"]
    world.operator.start()
    world.apply(sample(scaleDown={**scaling["scaleDown"], "drainTimeoutSeconds": 10}))
    world.await_ready()
    fleet.demanded = 2 * GIB
    world.await_replicas(3)
    world.await_ready()
    fleet.holds_drains = True
    fleet.demanded = 0
    wait_until(lambda: bool(world.events("DrainTimedOut")), "the drain is given up")
    (told, *_) = world.events("DrainTimedOut")
    assert "was not drained within 10 s" in told
    assert "drainTimeoutSeconds" in told
    wait_until(lambda: bool(fleet.cancelled), "the gateway was told")
    assert world.replicas() == 3  # nobody went who held something
    assert len(world.pods("attention")) == 3
    pods = world.pods("attention")
    failed = [
        pod["metadata"]["name"]
        for pod in pods
        if "glinthawk.dev/drain-failed" in pod["metadata"].get("annotations", {})
    ]
    assert failed


def test_growth_does_not_wait_for_pods_that_find_no_room(world: World) -> None:
    fleet = world.fleet
    world.operator.start()
    world.apply(sample())
    world.await_ready()
    fleet.troubles["attention"] = NO_ROOM
    fleet.demanded = int(1.5 * GIB)
    world.await_replicas(2)
    wait_until(lambda: len(world.pods("attention")) == 2, "a second pod")
    fleet.demanded = 2 * GIB
    world.await_replicas(3)  # though the second is still pending
    wait_until(lambda: world.condition("Degraded")[1] == "Unschedulable", "it is said")
    assert "2 Insufficient memory" in world.condition("Degraded")[2]
    assert world.condition("Ready")[0] == "True"
    serving = {pod["metadata"]["name"] for pod in world.pods("attention")} & set(
        fleet.workers["default", "demo"]
    )
    assert len(serving) == 1
    fleet.holds_drains = True  # a drain could not end, and none is needed: pending pods go first
    fleet.demanded = 0
    world.await_replicas(1)
    wait_until(lambda: len(world.pods("attention")) == 1, "one pod")
    assert {pod["metadata"]["name"] for pod in world.pods("attention")} == serving
    assert not fleet.drained


def test_without_figures_the_tier_stays_as_it_is_through_a_restart_too(world: World) -> None:
    operator, fleet = world.operator, world.fleet
    operator.start()
    world.apply(sample(staleAfterSeconds=10))
    world.await_ready()
    fleet.demanded = 2 * GIB
    world.await_replicas(3)
    world.await_ready()
    fleet.demanded = 0
    fleet.is_silent = True
    wait_until(lambda: world.condition("Ready")[1] == "GatewayUnreachable", "its silence is said")
    wait_until(
        lambda: operator.scrape()["glinthawk_operator_scaling_frozen"]["demo", "default"] == 1,
        "it is frozen",
    )
    operator.kill()
    operator.start()
    wait_until(
        lambda: (
            operator.scrape().get("glinthawk_operator_scaling_frozen", {}).get(("demo", "default"))
            == 1
        ),
        "it is frozen after a restart",
    )
    time.sleep(REST_S)
    assert world.replicas() == 3
    assert not fleet.drained
    fleet.is_silent = False
    world.await_replicas(1)
