"""Watches that are lost, between the operator and a real API server: refused for good, refused from
the start, and taken up again after a gap in which things went away."""

import json
import time
from collections.abc import Iterator

import pytest

from cluster.faults import FaultyProxy
from cluster.rights import USER
from cluster.world import World, sample, wait_until

ALIVE = 200
GIVES_UP_S = 120.0
DEPLOYMENTS = "/apis/apps/v1/deployments"


@pytest.fixture
def proxy(world: World) -> Iterator[FaultyProxy]:
    """A connection of the operator that can be disturbed."""
    opened = FaultyProxy(world.operator_kubeconfig, share=0.0, seed=1)
    world.operator.use(opened.kubeconfig)
    yield opened
    opened.close()


def await_end(world: World) -> None:
    """Wait until the process ends with an error, so that a kubelet starts it anew."""
    wait_until(lambda: world.operator.exit_code is not None, "it ends", GIVES_UP_S)
    assert world.operator.exit_code == 1


def await_anew(world: World, kind: str, name: str) -> None:
    """Wait until an object that was deleted is there again; until then the status is an old one."""
    wait_until(
        lambda: world.plane.kubectl("get", kind, name).returncode == 0, f"{kind} {name} anew"
    )


def test_a_watch_that_is_refused_for_good_ends_the_process(
    world: World, proxy: FaultyProxy
) -> None:
    world.operator.start()
    world.apply(sample())
    world.await_ready()
    proxy.refused.add(DEPLOYMENTS)  # such as while a role is being replaced
    proxy.cut_watches()
    await_end(world)
    proxy.refused.clear()
    world.operator.start()
    world.plane.do("delete", "deployment", "demo-attention")
    await_anew(world, "deployment", "demo-attention")
    world.await_ready()
    assert world.operator.health() == ALIVE


def test_a_watch_that_is_refused_from_the_start_ends_it_too(
    world: World, proxy: FaultyProxy
) -> None:
    proxy.refused.add(DEPLOYMENTS)
    world.operator.start()
    world.apply(sample())
    await_end(world)


def test_what_went_away_while_nobody_watched_is_made_anew(world: World, proxy: FaultyProxy) -> None:
    world.operator.start()
    world.apply(sample())
    world.await_ready()
    fall_deaf(world, proxy, "service", "demo")
    await_anew(world, "service", "demo")
    world.await_ready()
    assert world.operator.health() == ALIVE


def test_a_resource_that_went_away_while_nobody_watched_is_left_alone(
    world: World, proxy: FaultyProxy
) -> None:
    world.operator.start()
    world.apply(sample())
    world.apply(sample("other"))
    world.await_ready()
    world.await_ready("other")
    fall_deaf(world, proxy, "ghd", "demo")
    label = "app.kubernetes.io/instance=demo"
    wait_until(
        lambda: not world.plane.read("services,deployments,pods", "-l", label)["items"],
        "nothing of it is left",
    )
    time.sleep(5)  # until the new lists are compared
    world.audit.skip()
    time.sleep(20)
    writes = [one for one in world.audit.read(USER) if one.is_write and one.resource != "leases"]
    assert not writes, writes


def fall_deaf(world: World, proxy: FaultyProxy, kind: str, name: str) -> None:
    """Delete something while the operator hears nothing; its watches must begin anew then."""
    proxy.is_deaf = True
    proxy.cut_watches()
    time.sleep(1)
    world.plane.do("delete", kind, name)
    listed = json.loads(world.plane.do("get", "--raw", "/api/v1/services?limit=1"))
    proxy.forgotten_version = int(listed["metadata"]["resourceVersion"])
    proxy.is_deaf = False
