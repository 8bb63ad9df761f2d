"""Doing what was planned: what is refused holds up nothing, and nothing is written twice."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from factories_api import ApiStandIn, make_cluster
from factories_operator import make_context
from glinthawk_operator.errors import ApiUnavailable
from glinthawk_operator.executor import Executor, Marks, Target
from glinthawk_operator.index import ObjectIndex, ResourceKey
from glinthawk_operator.manifests.applied import stamp
from glinthawk_operator.reconcile.actions import (
    Action,
    Announce,
    Apply,
    CancelDrain,
    Create,
    Delete,
    Drain,
)

CONTEXT = make_context()
KEY = ResourceKey("ns", "demo")


def manifest(name: str) -> dict[str, Any]:
    return stamp(
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": CONTEXT.metadata(name, "gateway"),
            "data": {"a": "b"},
        }
    )


class World:
    def __init__(self, server: ApiStandIn) -> None:
        self.server = server
        self.index = ObjectIndex()
        self.now_s = 1_800_000_000.0
        self.done: list[str] = []
        self.marks = Marks()
        self.executor = Executor(
            make_cluster(server),
            self.index,
            reporter="test",
            observe=self.done.append,
            clock=lambda: self.now_s,
        )

    def run(self, *actions: Action) -> tuple[str, ...]:
        owned = self.index.read(KEY)
        target = Target("demo", "ns", "uid-demo", owned, None, self.marks)
        return self.executor.run(actions, target)


@pytest.fixture
def world() -> Iterator[World]:
    server = ApiStandIn()
    yield World(server)
    server.close()


def answer_with(world: World, body: dict[str, Any], version: str) -> None:
    metadata = {**body["metadata"], "uid": "u", "resourceVersion": version}
    world.server.answers.append((200, {}, {**body, "metadata": metadata}))


def test_what_was_applied_is_known_before_the_watch_says_so(world: World) -> None:
    answer_with(world, manifest("one"), "5")
    assert world.run(Apply(manifest("one"))) == ()
    live = world.index.read(KEY).get("ConfigMap", "one")
    assert live is not None
    assert live["metadata"]["resourceVersion"] == "5"
    assert world.done == ["Apply"]


def test_the_same_is_not_applied_again_to_the_same_version(world: World) -> None:
    answer_with(world, manifest("one"), "5")
    world.run(Apply(manifest("one")))
    world.run(Apply(manifest("one")))
    assert len(world.server.asked) == 1
    changed = json.loads(json.dumps(world.index.read(KEY).get("ConfigMap", "one")))
    changed["metadata"]["resourceVersion"] = "6"
    world.index.put("ConfigMap", changed)
    answer_with(world, manifest("one"), "7")
    world.run(Apply(manifest("one")))
    assert len(world.server.asked) == 2


@pytest.mark.parametrize("code", [403, 422])
def test_what_is_refused_is_said_and_the_rest_is_done(world: World, code: int) -> None:
    world.server.fail(code)
    answer_with(world, manifest("two"), "5")
    (refused,) = world.run(Apply(manifest("one")), Apply(manifest("two")))
    assert f"because of {code}" in refused
    assert world.done == ["Apply"]


@pytest.mark.parametrize("code", [404, 409])
def test_what_is_behind_waits_for_the_watch(world: World, code: int) -> None:
    world.server.fail(code)
    assert world.run(Create(manifest("one")), Delete("Pod", "p", "u", 0)) == ()
    assert world.done == ["Delete"]


def test_a_server_that_fails_ends_the_turn(world: World) -> None:
    for _ in range(50):
        world.server.fail(503)
    with pytest.raises(ApiUnavailable):
        world.run(Apply(manifest("one")), Apply(manifest("two")))
    assert world.done == []


def test_an_event_is_written_once_an_hour(world: World) -> None:
    for _ in range(3):
        world.run(Announce("PodsMissing", "waiting"))
    assert len(world.server.asked) == 1
    event = world.server.asked[0][3]
    assert event["regarding"]["uid"] == "uid-demo"
    assert (event["reason"], event["type"]) == ("PodsMissing", "Normal")
    world.now_s += 3601
    world.run(Announce("PodsMissing", "waiting"))
    assert len(world.server.asked) == 2


def test_what_happens_again_is_told_again(world: World) -> None:
    for at_s in (1.0, 1.0, 2.0):
        world.run(Announce("Scaled", "2 -> 1", at_s=at_s))
    assert len(world.server.asked) == 2


def test_without_a_gateway_nothing_drains(world: World) -> None:
    assert world.run(Drain("w", 1.0), CancelDrain("w")) == ()
    assert world.done == []


def test_what_is_not_watched_is_deleted_once(world: World) -> None:
    body = {**manifest("demo"), "kind": "ServiceMonitor"}
    body["metadata"] = {**body["metadata"], "uid": "u", "resourceVersion": "1"}
    world.index.put("ServiceMonitor", body, KEY)
    world.index.put("NetworkPolicy", body, KEY)
    world.run(Delete("ServiceMonitor", "demo", "u"), Delete("NetworkPolicy", "demo", "u"))
    # Of what is watched, the watch says when it is gone.
    assert set(world.index.read(KEY).objects) == {("NetworkPolicy", "demo")}
