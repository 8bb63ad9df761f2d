"""What a reconcile asks: a silent gateway ever less often, and caches only where it counts."""

from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from factories_api import ApiStandIn, make_cluster
from factories_operator import make_context
from glinthawk_operator.errors import GatewayAway
from glinthawk_operator.gateway_client import Inspection
from glinthawk_operator.index import ObjectIndex, ResourceKey
from glinthawk_operator.manifests.names import HOST_LABEL, object_labels
from glinthawk_operator.metrics import OperatorMetrics
from glinthawk_operator.observer import MAX_SILENCE_S, Memory, Observer
from glinthawk_operator.settings import Settings

KEY = ResourceKey("ns", "demo")
CONTEXT = make_context()
POLL_S = 5.0
UNSCHEDULABLE = {"status": "False", "reason": "Unschedulable"}


class Gateway:
    """Answers or not, and counts how often it was asked."""

    def __init__(self) -> None:
        self.is_away = True
        self.num_asked = 0

    def inspect(self) -> Inspection:
        self.num_asked += 1
        if self.is_away:
            raise GatewayAway("no gateway answers")
        return Inspection(is_ready=True)


class World:
    def __init__(self, server: ApiStandIn) -> None:
        self.server = server
        self.index = ObjectIndex()
        self.now_s = 1_800_000_000.0
        self.gateway = Gateway()
        self.memory = Memory()
        self.observer = Observer(
            make_cluster(server),
            self.index,
            Settings(poll_seconds=POLL_S),
            OperatorMetrics(CollectorRegistry()),
            clock=lambda: self.now_s,
        )

    def put_pod(self, component: str, uid: str = "u", **conditions: dict[str, str]) -> None:
        name = f"demo-{component}-0"
        metadata = {"name": name, "namespace": "ns", "uid": uid, "resourceVersion": "1"}
        kinds = [{"type": kind, **fields} for kind, fields in conditions.items()]
        self.index.put(
            "Pod",
            {
                "metadata": {**metadata, "labels": object_labels("demo", component)},
                "status": {"phase": "Running", "conditions": kinds},
            },
        )

    def inspect(self) -> tuple[Inspection | None, str | None]:
        owned = self.index.read(KEY)
        return self.observer.inspect(self.gateway, owned, self.memory)  # type: ignore[arg-type]

    def observe(self) -> list[str]:
        """Observe, and return what the API server was asked."""
        self.lost_nodes()
        return [path for _, path, _, _ in self.server.asked]

    def lost_nodes(self) -> frozenset[str]:
        """Observe, and return which nodes are lost."""
        body: Any = {"metadata": {"generation": 1}}
        owned = self.index.read(KEY)
        return self.observer.observe(CONTEXT, owned, None, self.memory, body).lost_nodes


@pytest.fixture
def world() -> Iterator[World]:
    server = ApiStandIn()
    yield World(server)
    server.close()


def test_a_silent_gateway_is_asked_less_and_less_often(world: World) -> None:
    world.put_pod("gateway")
    asked = []
    for _ in range(24):
        assert world.inspect() == (None, "no gateway answers")
        asked.append(world.gateway.num_asked)
        world.now_s += POLL_S
    # After 5, 10, 20 seconds, then every 30.
    assert asked[:9] == [1, 2, 2, 3, 3, 3, 3, 4, 4]
    assert asked[-1] <= 4 + 24 * POLL_S / MAX_SILENCE_S


def test_a_gateway_that_answers_again_is_asked_each_time(world: World) -> None:
    world.put_pod("gateway")
    world.inspect()
    world.inspect()
    assert world.gateway.num_asked == 1
    world.gateway.is_away = False
    world.now_s += POLL_S
    for _ in range(3):
        inspection, why = world.inspect()
        assert inspection is not None
        assert why is None
    assert world.gateway.num_asked == 4


def test_a_new_pod_of_a_silent_gateway_is_asked_at_once(world: World) -> None:
    world.put_pod("gateway")
    for _ in range(5):
        world.inspect()
        world.now_s += MAX_SILENCE_S
    world.inspect()
    world.gateway.is_away = False
    assert world.inspect()[0] is None
    world.put_pod("gateway", uid="new")
    assert world.inspect()[0] is not None


def test_where_no_nodes_are_watched_no_cache_is_asked_for(world: World) -> None:
    away = {"message": "0/2: 2 node(s) had volume node affinity conflict", **UNSCHEDULABLE}
    world.put_pod("stage", PodScheduled=away)
    assert world.observe() == []


@pytest.mark.parametrize(("host", "is_lost"), [("host-1", False), ("host-2", True)])
def test_a_cache_is_found_by_the_host_label_of_its_node(
    world: World, host: str, is_lost: bool
) -> None:
    """The label of a node need not be its name."""
    world.index.put_node({"metadata": {"name": "n1", "uid": "n", "labels": {HOST_LABEL: "host-1"}}})
    away = {"message": "0/2: 2 node(s) had volume node affinity conflict", **UNSCHEDULABLE}
    world.put_pod("stage", PodScheduled=away)
    claim = {"metadata": {"name": "cache-demo-stage-0"}, "spec": {"volumeName": "v"}}
    expression = {"key": HOST_LABEL, "operator": "In", "values": [host]}
    affinity = {"required": {"nodeSelectorTerms": [{"matchExpressions": [expression]}]}}
    volume = {"metadata": {"name": "v"}, "spec": {"nodeAffinity": affinity}}
    world.server.answers += [(200, {}, claim), (200, {}, volume)]
    assert (host in world.lost_nodes()) == is_lost


def test_only_a_stage_that_a_volume_holds_up_is_asked_for_its_cache(world: World) -> None:
    world.index.put_node({"metadata": {"name": "n1", "uid": "n"}})
    no_room = {"message": "0/2: 2 Insufficient cpu", **UNSCHEDULABLE}
    world.put_pod("stage", PodScheduled=no_room)
    assert world.observe() == []
    away = {**no_room, "message": "0/2: 2 node(s) had volume node affinity conflict"}
    world.put_pod("stage", uid="new", PodScheduled=away)
    claim = {"metadata": {"name": "cache-demo-stage-0"}, "spec": {"volumeName": ""}}
    world.server.answers.append((200, {}, claim))
    (path,) = world.observe()
    assert path.endswith("/persistentvolumeclaims/cache-demo-stage-0")
