"""The operator killed in the middle of all that it does: it ends where it would have without."""

import time
from typing import Any

from cluster.world import GIB, World, sample, wait_until

NUM_OWNED = 22
"""Objects of a resource of two stages, and the resource."""

REST_S = 4.0
OLD, NEW = "good:1", "good:2"


def of_image(image: str) -> dict[str, Any]:
    manifest = sample()
    for tier in ("gateway", "gpuTier", "memoryTier"):
        manifest["spec"][tier]["image"] = image
    return manifest


def kill_and_start(world: World) -> None:
    world.operator.kill()
    world.operator.start()


def images(world: World) -> set[str]:
    pods = [pod for one in ("gateway", "stage", "attention") for pod in world.pods(one)]
    return {pod["spec"]["containers"][0]["image"] for pod in pods}


def test_killed_in_each_phase_it_goes_on_from_there(world: World) -> None:
    world.operator.start()
    world.apply(of_image(OLD))
    wait_until(lambda: bool(world.left_over()), "it installs")
    kill_and_start(world)
    assert world.condition("Ready")[0] != "True", "the installation was over before"
    world.await_ready()
    _kill_while_it_grows(world)
    _kill_while_it_drains(world)
    _kill_while_it_updates(world)
    assert len(world.snapshot()) == NUM_OWNED
    world.plane.do("delete", "ghd", "demo", "--wait=false")
    kill_and_start(world)
    wait_until(lambda: not world.left_over(), "nothing is left")


def _kill_while_it_grows(world: World) -> None:
    stages = {pod["metadata"]["uid"] for pod in world.pods("stage")}
    world.fleet.demanded = 2 * GIB
    wait_until(lambda: world.replicas() > 1, "it grows")
    kill_and_start(world)
    world.await_replicas(3)
    wait_until(lambda: len(world.fleet.workers["default", "demo"]) == 3, "three workers serve")
    world.await_ready()
    assert {pod["metadata"]["uid"] for pod in world.pods("stage")} == stages


def _kill_while_it_drains(world: World) -> None:
    fleet = world.fleet
    before = {pod["metadata"]["name"] for pod in world.pods("attention")}
    fleet.holds_drains = True
    fleet.demanded = 0
    wait_until(lambda: "draining" in str(fleet.workers), "the gateway was asked")
    kill_and_start(world)
    wait_until(lambda: bool(world.operator.events("leading")), "it leads again")
    time.sleep(REST_S)
    assert world.replicas() == 3  # who is not drained stays
    assert "drained" not in str(fleet.workers)
    fleet.end_drains()
    world.await_replicas(1)
    wait_until(lambda: len(world.pods("attention")) == 1, "one worker")
    left = {pod["metadata"]["name"] for pod in world.pods("attention")}
    assert before - left == set(fleet.drained)
    world.await_ready()


def _kill_while_it_updates(world: World) -> None:
    world.fleet.troubles["check"] = {"phase": "Pending"}
    world.apply(of_image(NEW))
    wait_until(lambda: bool(world.pods("check")), "the new image is checked")
    kill_and_start(world)
    assert images(world) == {OLD}
    del world.fleet.troubles["check"]
    wait_until(lambda: NEW in images(world), "the first pod is replaced")
    kill_and_start(world)
    wait_until(lambda: images(world) == {NEW}, "every pod has the new image")
    wait_until(lambda: not world.pods("check"), "check pods are gone")
    world.await_ready()
