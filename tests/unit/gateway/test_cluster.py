"""The cluster with members that join, go and come back over real connections."""

import queue
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from glinthawk.core.dtype import DType
from glinthawk.core.ids import LaneId
from glinthawk.core.step import StepKind, StepPlan, StepResult
from glinthawk.errors import PeerUnavailable, StateLost
from glinthawk.gateway import epochs as gateway_epochs
from glinthawk.gateway.cluster import Cluster
from glinthawk.gateway.keeper import ClusterEvents
from glinthawk.gateway.roster import Roster, WorkerEntry
from glinthawk.gateway.store.sql import open_store
from glinthawk.telemetry.defects import ThreadDefects
from glinthawk.telemetry.metrics import ServiceMetrics
from glinthawk.wire.dial import DialOptions
from glinthawk.wire.failures import encode_failure
from glinthawk.wire.frames import FrameHeader, FrameKind
from glinthawk.wire.grpc_server import GrpcServer
from glinthawk.wire.messages import Heartbeat, View
from glinthawk.wire.results import encode_result
from glinthawk.wire.transport import Connection
from unit.gateway.members import MODEL, WAIT_S, TestMember, stage_offer, worker_offer


class Gateway:
    """A cluster that records its news."""

    def __init__(
        self,
        num_stages: int = 1,
        *,
        reserve_epochs: Callable[[int], int] | None = None,
        lease_s: float = 6.0,
        kv_dtype: DType | None = None,
    ) -> None:
        self.epoch = 0
        self.events: queue.Queue[tuple[Any, ...]] = queue.Queue()
        self.server = GrpcServer("127.0.0.1", 0)
        self.members: list[TestMember] = []
        roster = Roster(MODEL, "digest", num_stages=num_stages, num_workers=0, kv_dtype=kv_dtype)
        self.cluster = Cluster(
            roster,
            reserve_epochs=reserve_epochs or self._reserve_epochs,
            dial_options=DialOptions(role="gateway", timeout_s=60.0),
            metrics=ServiceMetrics(CollectorRegistry()),
            lease_s=lease_s,
        )
        self.cluster.attach(self.server)
        self.server.start()
        self.cluster.start()

    def _reserve_epochs(self, count: int) -> int:
        self.epoch += count
        return self.epoch - count + 1

    def stage(self, name: str = "s0", first: int = 0, last: int = 4) -> TestMember:
        self.members.append(TestMember(name, stage_offer(first, last), self.server.address))
        return self.members[-1]

    def worker(self, name: str) -> TestMember:
        self.members.append(TestMember(name, worker_offer(), self.server.address))
        return self.members[-1]

    def connect(self) -> None:
        self.cluster.wait_until_complete(WAIT_S, lambda: None)
        self.cluster.connect(
            ClusterEvents(
                on_result=lambda result: self.events.put(("result", result)),
                on_failed=lambda *news: self.events.put(("failed", *news)),
                on_worker_joined=lambda entry: self.events.put(("joined", entry)),
                on_worker_lost=lambda name, reason: self.events.put(("lost", name, reason)),
                on_stages_lost=lambda reason: self.events.put(("stages_lost", reason)),
                on_worker_leaves=lambda *news: self.events.put(("leaves", *news)),
                on_copy_ended=lambda ended: self.events.put(("copied", ended)),
            )
        )

    def wait_for(self, kind: str) -> tuple[Any, ...]:
        event = self.events.get(timeout=WAIT_S)
        assert event[0] == kind, event
        return event

    def wait_for_joined(self, name: str) -> WorkerEntry:
        entry = self.wait_for("joined")[1]
        assert isinstance(entry, WorkerEntry)
        assert entry.name == name
        return entry

    def send(self, worker: WorkerEntry, step: int) -> None:
        none = np.zeros(0, dtype=np.uint32)
        plan = StepPlan(
            StepKind.RELEASE,
            LaneId(1),
            step,
            worker.name,
            sequences=none.astype(np.uint64),
            starts=none,
            counts=none,
            samples=none.astype(np.bool_),
            tokens=none,
        )
        self.cluster.send_step(plan, epoch=worker.epoch, prefill_first=False)

    def close(self) -> None:
        self.cluster.stop("the test is over")
        for member in self.members:
            member.close()
        self.server.stop(0.0)


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    gateway = Gateway()
    yield gateway
    gateway.close()


def names(view: View) -> set[str]:
    return {worker.name for worker in view.workers}


def epochs(view: View) -> dict[str, int]:
    return {worker.name: worker.epoch for worker in view.workers}


def answer(connection: Connection, worker: WorkerEntry, step: int) -> None:
    header = FrameHeader(FrameKind.RESULT, epoch=worker.epoch, lane=1, step=step)
    connection.send(header, encode_result(StepResult(LaneId(1), step, ())))


def test_a_worker_that_joins_is_in_the_next_view_and_the_others_keep_their_epochs(
    gateway: Gateway,
) -> None:
    stage = gateway.stage()
    gateway.worker("w0")
    gateway.connect()
    first = gateway.wait_for_joined("w0")
    gateway.worker("w1")
    second = gateway.wait_for_joined("w1")
    view = stage.next_view(lambda view: names(view) == {"w0", "w1"})
    assert epochs(view) == {"w0": first.epoch, "w1": second.epoch}
    assert view.epoch > second.epoch > first.epoch
    stage.next_connection()
    assert stage.connections.empty(), "the line to the stage stays"
    assert gateway.events.empty()


def test_a_worker_that_comes_before_the_stages_is_told_of_when_they_are_there(
    gateway: Gateway,
) -> None:
    gateway.worker("w0")
    gateway.stage()
    gateway.connect()
    entry = gateway.wait_for_joined("w0")
    assert gateway.cluster.is_whole
    assert entry.kv_bytes == 1 << 30


def test_a_worker_gets_the_shape_of_the_pages_before_the_stages_are_there_if_it_is_known() -> None:
    gateway = Gateway(kv_dtype=DType.BFLOAT16)
    try:
        worker = gateway.worker("w0")
        first = worker.next_view()
        assert (names(first), first.stages) == ({"w0"}, ())
        assert first.geometry == MODEL.kv_geometry(DType.BFLOAT16)
        gateway.stage()
        gateway.connect()
        entry = gateway.wait_for_joined("w0")
        later = worker.next_view(lambda view: bool(view.stages))
        assert later.geometry == first.geometry
        assert epochs(later)["w0"] == entry.epoch > epochs(first)["w0"]
    finally:
        gateway.close()


def test_a_worker_that_leaves_is_lost_with_the_reason_and_comes_back_under_a_later_epoch(
    gateway: Gateway,
) -> None:
    stage = gateway.stage()
    worker = gateway.worker("w0")
    gateway.connect()
    first = gateway.wait_for_joined("w0")
    worker.leave()
    _, name, reason = gateway.wait_for("lost")
    assert name == "w0"
    assert "'w0' left" in reason
    stage.next_view(lambda view: names(view) == set())
    assert not gateway.cluster.is_whole
    worker.join_again()
    second = gateway.wait_for_joined("w0")
    assert second.epoch > first.epoch
    assert second.instance == first.instance == f"process of {worker.server.address}"


def test_a_locked_store_costs_no_member_its_lease(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway_epochs, "BLOCK", gateway_epochs.LEAST)  # a write for each change
    store = open_store(tmp_path, busy_timeout_s=WAIT_S)
    gateway = Gateway(reserve_epochs=store.reserve_epochs, lease_s=1.5)
    other = sqlite3.connect(tmp_path / "glinthawk.db", isolation_level=None)
    try:
        gateway.stage().heartbeat = Heartbeat({"busy_seconds": 1.0})
        gateway.worker("w0").heartbeat = Heartbeat({"busy_seconds": 1.0})
        gateway.connect()
        gateway.wait_for_joined("w0")
        other.execute("BEGIN IMMEDIATE")
        gateway.worker("w1")
        time.sleep(4.0)
        assert gateway.events.empty()
        other.execute("ROLLBACK")
        gateway.wait_for_joined("w1")
        assert gateway.events.empty()
    finally:
        other.close()
        gateway.close()
        store.close()


def test_a_defect_of_the_thread_that_keeps_the_tiers_whole_does_not_vanish(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(now: float) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(gateway.cluster._keeper, "_reconcile", fail)
    with ThreadDefects() as defects:
        gateway.stage()
        gateway.connect()
        deadline = time.monotonic() + WAIT_S
        while defects.failure is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert "'cluster' (ZeroDivisionError)" in str(defects.failure)


def test_steps_go_out_and_results_and_failures_come_back(gateway: Gateway) -> None:
    stage = gateway.stage()
    gateway.worker("w0")
    gateway.connect()
    worker = gateway.wait_for_joined("w0")
    connection = stage.next_connection()
    gateway.send(worker, 7)
    header, _ = connection.receive()
    assert (header.kind, header.epoch, header.step) == (FrameKind.STEP, worker.epoch, 7)
    answer(connection, worker, 7)
    assert gateway.wait_for("result")[1].step == 7
    failed = FrameHeader(FrameKind.FAILED, epoch=worker.epoch, lane=1, step=8)
    connection.send(failed, encode_failure(StateLost("gone")))
    _, lane, step, error = gateway.wait_for("failed")
    assert (lane, step, str(error)) == (1, 8, "gone")


def test_frames_of_a_former_life_of_the_gateway_are_dropped(gateway: Gateway) -> None:
    stage = gateway.stage()
    gateway.worker("w0")
    gateway.connect()
    worker = gateway.wait_for_joined("w0")
    connection = stage.next_connection()
    stale = FrameHeader(FrameKind.RESULT, epoch=0, lane=1, step=3)
    connection.send(stale, encode_result(StepResult(LaneId(1), 3, ())))
    answer(connection, worker, 4)
    assert gateway.wait_for("result")[1].step == 4


def test_a_reset_gives_one_worker_a_later_epoch(gateway: Gateway) -> None:
    stage = gateway.stage()
    gateway.worker("w0")
    gateway.connect()
    first = gateway.wait_for_joined("w0")
    gateway.cluster.reset_worker("w0", first.epoch, PeerUnavailable("no way to it"))
    assert "no way to it" in gateway.wait_for("lost")[2]
    second = gateway.wait_for_joined("w0")
    assert second.epoch > first.epoch
    assert second.instance == first.instance
    stage.next_view(lambda view: epochs(view) == {"w0": second.epoch})
    gateway.cluster.reset_worker("w0", first.epoch, PeerUnavailable("told too late"))
    time.sleep(0.3)
    assert gateway.events.empty()


def test_a_worker_that_wants_to_end_is_told_of_until_it_is_released(gateway: Gateway) -> None:
    gateway.stage()
    worker = gateway.worker("w0")
    gateway.connect()
    gateway.wait_for_joined("w0")
    worker.heartbeat = Heartbeat(drain_s=30.0)
    worker.client.beat()
    assert gateway.wait_for("leaves") == ("leaves", "w0", 30.0)
    gateway.cluster.release_worker("w0")
    assert worker.shutdowns.get(timeout=WAIT_S) == "it is drained"


def test_a_worker_that_is_not_in_use_may_end_at_once(gateway: Gateway) -> None:
    worker = gateway.worker("w0")
    worker.accepted.get(timeout=WAIT_S)
    worker.heartbeat = Heartbeat(drain_s=30.0)
    worker.client.beat()
    assert worker.shutdowns.get(timeout=WAIT_S) == "it is drained"


def test_while_a_stage_is_away_no_worker_is_of_use(gateway: Gateway) -> None:
    stage = gateway.stage()
    gateway.worker("w0")
    gateway.connect()
    first = gateway.wait_for_joined("w0")
    stage.leave()
    assert "'s0' left" in gateway.wait_for("stages_lost")[1]
    assert gateway.wait_for("lost")[1] == "w0"
    gateway.worker("w1")
    time.sleep(0.3)
    assert gateway.events.empty()
    gateway.send(first, 1)
    other = gateway.stage("s9")
    joined = {gateway.wait_for("joined")[1].name for _ in range(2)}
    assert joined == {"w0", "w1"}
    view = other.next_view(lambda view: names(view) == {"w0", "w1"})
    assert min(epochs(view).values()) > first.epoch
    assert gateway.cluster.is_whole


def test_a_broken_line_begins_anew_with_the_stage_that_is_still_there(gateway: Gateway) -> None:
    stage = gateway.stage()
    gateway.worker("w0")
    gateway.connect()
    first = gateway.wait_for_joined("w0")
    stage.next_connection().close()
    assert "data connection to stage 's0'" in gateway.wait_for("stages_lost")[1]
    gateway.wait_for("lost")
    second = gateway.wait_for_joined("w0")
    assert second.epoch > first.epoch
    connection = stage.next_connection()
    gateway.send(second, 5)
    assert connection.receive()[0].epoch == second.epoch


def test_a_stage_that_is_there_keeps_its_line_when_another_is_replaced() -> None:
    gateway = Gateway(num_stages=2)
    try:
        first, second = gateway.stage("s0", 0, 2), gateway.stage("s1", 2, 4)
        gateway.worker("w0")
        gateway.connect()
        gateway.wait_for_joined("w0")
        line = first.next_connection()
        second.leave()
        gateway.wait_for("stages_lost")
        gateway.wait_for("lost")
        gateway.stage("s2", 2, 4).next_connection()
        worker = gateway.wait_for_joined("w0")
        gateway.send(worker, 5)
        assert line.receive()[0].step == 5
        assert first.connections.empty()
    finally:
        gateway.close()


def test_a_stage_of_another_format_is_refused_once_the_pages_have_their_shape(
    gateway: Gateway,
) -> None:
    stage = gateway.stage()
    gateway.connect()
    stage.leave()
    gateway.wait_for("stages_lost")
    other = TestMember("s1", stage_offer(0, 4, DType.BFLOAT16), gateway.server.address)
    try:
        reason = other.refusals.get(timeout=WAIT_S)
        assert "bfloat16" in reason
        assert "float32" in reason
    finally:
        other.close()
