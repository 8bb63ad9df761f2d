"""Comparing the index with what is there: when, what of, and what a server that fails costs."""

from collections.abc import Iterator
from typing import Any

import pytest

from factories_api import ApiStandIn, make_cluster
from glinthawk_operator.index import ObjectIndex, ResourceKey
from glinthawk_operator.manifests.names import object_labels
from glinthawk_operator.resync import AGAIN_S, EVERY_S, SETTLE_S, Resync

KEY = ResourceKey("ns", "demo")


class World:
    def __init__(self, server: ApiStandIn, namespaces: tuple[str, ...] = ()) -> None:
        self.server = server
        self.index = ObjectIndex()
        self.now_s = 0.0
        self.told: list[ResourceKey] = []
        self.resync = Resync(
            make_cluster(server),
            self.index,
            kinds=("Pod", "Service"),
            namespaces=namespaces,
            enqueue=self.told.append,
            clock=lambda: self.now_s,
            random=lambda: 0.0,
        )
        self.index.put("Pod", build("p"))
        self.index.put("Service", build("s"))

    def answer(self, *uids: str) -> None:
        items = [{"metadata": {"uid": uid}} for uid in uids]
        metadata = {"resourceVersion": "100"}
        self.server.answers.append((200, {}, {"metadata": metadata, "items": items}))

    def paths(self) -> list[str]:
        return [path.partition("?")[0] for _, path, _, _ in self.server.asked]


def build(name: str) -> dict[str, Any]:
    metadata = {"name": name, "namespace": "ns", "uid": name, "resourceVersion": "5"}
    return {"metadata": {**metadata, "labels": object_labels("demo", "gateway")}}


@pytest.fixture
def server() -> Iterator[ApiStandIn]:
    server = ApiStandIn()
    yield server
    server.close()


def test_nothing_is_asked_before_it_is_due(server: ApiStandIn) -> None:
    world = World(server)
    world.resync.compare_due()
    world.now_s = EVERY_S - 1
    world.resync.compare_due()
    assert server.asked == []


def test_now_and_then_every_kind_is_compared(server: ApiStandIn) -> None:
    world = World(server)
    for _ in range(2):
        world.now_s += EVERY_S
        world.answer("p")
        world.answer("s")
        world.resync.compare_due()
    assert world.paths() == ["/api/v1/pods", "/api/v1/services"] * 2
    assert world.told == []


def test_after_a_new_list_only_its_kind_is_compared_and_its_owner_told(server: ApiStandIn) -> None:
    world = World(server)
    world.resync.note_list("Service")
    world.resync.compare_due()
    assert server.asked == []
    world.now_s = SETTLE_S
    world.answer()
    world.resync.compare_due()
    assert world.paths() == ["/api/v1/services"]
    assert world.told == [KEY]
    assert set(world.index.read(KEY).objects) == {("Pod", "p")}


def test_a_server_that_fails_is_asked_again_and_nothing_is_forgotten(server: ApiStandIn) -> None:
    world = World(server)
    world.resync.note_list("Pod")
    world.now_s = SETTLE_S
    for _ in range(50):
        server.fail(503)
    world.resync.compare_due()
    assert set(world.index.read(KEY).objects) == {("Pod", "p"), ("Service", "s")}
    server.answers.clear()
    world.now_s += AGAIN_S
    world.answer()
    world.resync.compare_due()
    assert set(world.index.read(KEY).objects) == {("Service", "s")}


def test_only_the_namespaces_that_are_watched_are_listed(server: ApiStandIn) -> None:
    world = World(server, ("ns", "other"))
    world.resync.note_list("Pod")
    world.now_s = SETTLE_S
    world.answer("p")
    world.answer()
    world.resync.compare_due()
    assert world.paths() == ["/api/v1/namespaces/ns/pods", "/api/v1/namespaces/other/pods"]
    assert world.told == []
