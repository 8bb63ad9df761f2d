"""Each alert on the figures of the processes fires by its fault, and not before.

The deployment and Prometheus are real; only time is shorter (prometheus_runs.FASTER).
"""

import json
from pathlib import Path

import pytest

from prometheus_runs import NO_PROMETHEUS, TEST_S, wait_until
from watched_fleet import (
    BINARY,
    Size,
    behind_a_relay,
    lines_of,
    submit,
    under_load,
    watched,
)

pytestmark = [
    pytest.mark.acceptance,
    pytest.mark.skipif(BINARY is None, reason=NO_PROMETHEUS),
    pytest.mark.timeout(TEST_S),
]

SMALL = Size(kv_memory="2MiB")
HEAVY = Size(
    num_stages=1,
    num_workers=1,
    model={"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 3},
)
"""So much to multiply that the stage is busy most of the time."""

SLOWER = 10
"""So that a lease, whose length is the same, runs out within an alert's window."""

READY = 'glinthawk_ready{role="gateway"} == 1'
STEPS = 'rate(glinthawk_steps_total{role="gateway"}[5s]) > 0'
IDLE = '1 - avg(rate(glinthawk_stage_busy_seconds_total{role="stage"}[10s]))'


def test_wrong_lines_want_of_kv_lost_workers_and_a_lost_gateway(tmp_path: Path) -> None:
    with watched(tmp_path, SMALL) as live:
        fleet, prometheus = live.fleet, live.prometheus
        assert not prometheus.ask('ALERTS{alertstate="firing"}')

        with under_load(live, 40, model="another"):
            prometheus.await_firing("GlinthawkLinesFail")

        submit(fleet, lines_of(4000), "large")
        prometheus.await_firing("GlinthawkKVPressure")

        for name in fleet.crew().workers:
            fleet.life(name).kill()
            fleet.remove(name)
        prometheus.await_firing("GlinthawkNotReady")

        fleet.life("gateway").kill()
        fleet.remove("gateway")
        prometheus.await_firing("GlinthawkGatewayDown")


def test_a_network_that_swallows_frames(tmp_path: Path) -> None:
    with watched(tmp_path, SMALL) as live, behind_a_relay(live) as (relay, _):
        prometheus = live.prometheus
        with under_load(live, 4000):
            wait_until(lambda: prometheus.has_data(STEPS), "steps end")
            assert not prometheus.is_firing("GlinthawkStalled")
            relay.hold()
            prometheus.await_firing("GlinthawkStalled")
            assert prometheus.has_data(READY)
            relay.release()
            prometheus.await_over("GlinthawkStalled")
            wait_until(lambda: prometheus.has_data(STEPS), "steps end again")


def test_a_slow_network(tmp_path: Path) -> None:
    with watched(tmp_path, HEAVY) as live, behind_a_relay(live) as (relay, _):
        prometheus = live.prometheus
        with under_load(live, 4000):
            wait_until(lambda: prometheus.has_data(f"{IDLE} < 0.5"), "the stage is busy")
            assert not prometheus.is_firing("GlinthawkStagesIdle")
            relay.delay_s = 0.2
            prometheus.await_firing("GlinthawkStagesIdle")
            relay.delay_s = 0.0
            prometheus.await_over("GlinthawkStagesIdle")


def test_outputs_far_longer_than_is_expected(tmp_path: Path) -> None:
    with watched(tmp_path, SMALL) as live:
        prometheus = live.prometheus
        assert not prometheus.is_firing("GlinthawkRecomputes")
        # One in ten is long: what is expected of each is learned from the others.
        any_length = {"stop": "what it never says"}
        short = lines_of(9, max_tokens=1, **any_length).splitlines()
        long = lines_of(1, max_tokens=600, **any_length).splitlines()
        lines = [json.loads(line) for line in (short + long) * 400]
        content = [json.dumps({**line, "custom_id": str(i)}) for i, line in enumerate(lines)]
        submit(live.fleet, "\n".join(content).encode(), "mixed")
        prometheus.await_firing("GlinthawkRecomputes")


def test_a_worker_that_is_lost_again_and_again_and_frames_that_come_late(tmp_path: Path) -> None:
    alerts = ("GlinthawkFramesDropped", "GlinthawkRecomputes")
    with watched(tmp_path, SMALL, SLOWER) as live, behind_a_relay(live) as (relay, worker):
        prometheus = live.prometheus
        with under_load(live, 4000):
            for _ in range(30):
                wait_until(lambda: prometheus.has_data(STEPS), "steps end")
                relay.hold()
                worker.freeze()
                wait_until(lambda: live.num_active() == 0, "its lease has run out")
                worker.thaw()
                wait_until(lambda: live.num_active() == 1, "it is back")
                relay.release()
                if all(map(prometheus.is_firing, alerts)):
                    break
            fired = [alert for alert in alerts if prometheus.is_firing(alert)]
    assert fired == list(alerts)
