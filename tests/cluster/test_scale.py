"""The operator with many resources: bounds on what it asks of the API server, and on times.

The full size is for `make acceptance`; a small one holds the same bounds on requests.
"""

from pathlib import Path

import pytest

from cluster.operator_process import Plane
from cluster.scale import SETTINGS, Phase, Scale, build_table, measure
from cluster.world import open_world

LEASE_A_MINUTE = 12
"""Requests by which the lease of 15 seconds is held."""

WATCHES = 12
AT_START = 60
"""Requests of a start that do not grow with resources: lists, watches, discovery, lease."""

A_RESOURCE = 2
"""Requests of a start for each resource: its two Secrets."""

P95_MS = 1000.0


def check(phases: list[Phase], scale: Scale) -> None:
    """Hold the phases against the bounds on requests."""
    print(build_table(phases))
    by_name = {phase.name: phase for phase in phases}
    rest, restart, silence = by_name["rest"], by_name["restart"], by_name["silence"]
    assert rest.writes == 0
    assert rest.requests_per_minute <= LEASE_A_MINUTE + WATCHES + 4
    assert restart.writes == 0
    renewals = LEASE_A_MINUTE * restart.seconds / 60
    assert restart.requests <= AT_START + renewals + A_RESOURCE * scale.resources
    assert restart.reconciles >= scale.resources
    assert silence.reconciles >= 0.5 * rest.reconciles * silence.seconds / rest.seconds


@pytest.mark.timeout(900)
def test_rest_means_no_writes_and_a_restart_asks_little(plane: Plane, tmp_path: Path) -> None:
    scale = Scale(resources=10, workers=2, nodes=5, rest_s=20, restart_s=5, silence_s=20)
    with open_world(plane, tmp_path, num_nodes=scale.nodes, settings=SETTINGS) as world:
        check(measure(world, scale), scale)


@pytest.mark.acceptance
@pytest.mark.timeout(3600)
def test_a_hundred_resources_and_five_hundred_workers(plane: Plane, tmp_path: Path) -> None:
    scale = Scale()
    with open_world(plane, tmp_path, num_nodes=scale.nodes, settings=SETTINGS) as world:
        phases = measure(world, scale)
        check(phases, scale)
    assert next(one for one in phases if one.name == "rest").p95_ms <= P95_MS
