"""The lease: one holds it, the other takes over only when it is silent or lets go."""

from typing import Any

import pytest

from glinthawk_operator.errors import ApiConflict, ApiNotFound, ApiUnavailable
from glinthawk_operator.leader import Leadership


class Leases:
    """Keeps one Lease with the API server's rule: a write names the version it changes."""

    def __init__(self) -> None:
        self.lease: dict[str, Any] | None = None
        self.version = 0
        self.is_away = False
        self.num_reads = 0

    def get(self, kind: str, name: str, namespace: str) -> dict[str, Any]:
        self.num_reads += 1
        if self.is_away:
            raise ApiUnavailable("away")
        if self.lease is None:
            raise ApiNotFound("none", status=404)
        return {**self.lease, "spec": dict(self.lease["spec"])}

    def create(self, manifest: dict[str, Any]) -> dict[str, Any]:
        if self.lease is not None:
            raise ApiConflict("there", status=409)
        return self._keep(manifest)

    def replace(self, manifest: dict[str, Any]) -> dict[str, Any]:
        if self.is_away:
            raise ApiUnavailable("away")
        if manifest["metadata"]["resourceVersion"] != str(self.version):
            raise ApiConflict("changed", status=409)
        return self._keep(manifest)

    def _keep(self, manifest: dict[str, Any]) -> dict[str, Any]:
        self.version += 1
        metadata = {**manifest["metadata"], "resourceVersion": str(self.version)}
        self.lease = {**manifest, "metadata": metadata}
        return self.lease


class World:
    def __init__(self) -> None:
        self.now_s = 1_800_000_000.0
        self.leases = Leases()

    def leader(self, holder: str) -> Leadership:
        return Leadership(
            self.leases,  # type: ignore[arg-type]
            "lease",
            "ns",
            holder=holder,
            lease_s=15.0,
            clock=lambda: self.now_s,
        )


@pytest.fixture
def world() -> World:
    return World()


def test_the_first_leads_and_the_second_waits(world: World) -> None:
    first, second = world.leader("a"), world.leader("b")
    first.try_once()
    second.try_once()
    assert (first.is_leader, second.is_leader) == (True, False)


def test_a_silent_leader_stops_before_another_begins(world: World) -> None:
    first, second = world.leader("a"), world.leader("b")
    first.try_once()
    seen = []
    for _ in range(40):
        world.now_s += 1.0
        second.try_once()
        assert not (first.is_leader and second.is_leader)
        seen.append(second.is_leader)
    assert seen[-1]
    assert not first.is_leader


def test_a_leader_that_renews_keeps_the_lease(world: World) -> None:
    first, second = world.leader("a"), world.leader("b")
    for _ in range(20):
        first.try_once()
        second.try_once()
        assert first.is_leader
        assert not second.is_leader
        world.now_s += 5.0


def test_a_leader_that_ends_lets_go_at_once(world: World) -> None:
    first, second = world.leader("a"), world.leader("b")
    first.try_once()
    second.try_once()
    first.release()
    second.try_once()
    assert (first.is_leader, second.is_leader) == (False, True)


def test_a_lease_that_is_long_out_of_date_is_taken_at_once(world: World) -> None:
    world.leader("a").try_once()
    world.now_s += 3600
    second = world.leader("b")
    second.try_once()
    assert second.is_leader


def test_a_leader_without_an_api_server_stops_in_time(world: World) -> None:
    first = world.leader("a")
    first.try_once()
    world.leases.is_away = True
    world.now_s += 5
    with pytest.raises(ApiUnavailable):
        first.try_once()
    assert first.is_leader
    world.now_s += 6
    assert not first.is_leader


def test_of_two_that_take_it_at_once_one_gets_it(world: World) -> None:
    first, second = world.leader("a"), world.leader("b")
    world.leader("old").try_once()
    world.now_s += 3600
    before = world.leases.get("Lease", "lease", "ns")
    first.try_once()
    world.leases.get = lambda *_: before  # type: ignore[method-assign]
    second.try_once()
    assert (first.is_leader, second.is_leader) == (True, False)


def test_a_leader_renews_with_one_request(world: World) -> None:
    first = world.leader("a")
    first.try_once()
    reads = world.leases.num_reads
    for _ in range(10):
        world.now_s += 5.0
        first.try_once()
        assert first.is_leader
    assert world.leases.num_reads == reads
    assert world.leases.lease is not None
    assert world.leases.lease["spec"]["leaseTransitions"] == 0


def test_a_lease_that_someone_wrote_to_is_looked_at_and_stays_ours(world: World) -> None:
    first = world.leader("a")
    first.try_once()
    assert world.leases.lease is not None
    world.leases.replace(world.leases.lease)  # such as an annotation
    world.now_s += 5.0
    first.try_once()
    assert first.is_leader
    world.leases.lease = None  # or it was deleted
    world.now_s += 5.0
    first.try_once()
    assert first.is_leader


def test_a_lease_that_another_took_is_lost(world: World) -> None:
    first, second = world.leader("a"), world.leader("b")
    first.try_once()
    world.leases.replace({**world.leases.lease, "spec": {"holderIdentity": ""}})  # type: ignore[dict-item]
    second.try_once()
    assert second.is_leader
    first.try_once()
    assert not first.is_leader
