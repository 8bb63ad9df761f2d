"""Every query of the dashboards and alerts, put to a real Prometheus over a live deployment."""

import re
from pathlib import Path

import pytest

from prometheus_runs import NO_PROMETHEUS, read_panel_queries, read_rules
from watched_fleet import BINARY, calling, under_load, watched

pytestmark = pytest.mark.skipif(BINARY is None, reason=NO_PROMETHEUS)
SELECTOR = re.compile(r"glinthawk_\w+(?:\{[^}]*\})?")


def test_every_panel_and_alert_has_figures_of_a_live_deployment(tmp_path: Path) -> None:
    rules = [rule for group in read_rules()["groups"] for rule in group["rules"]]
    queries = [*read_panel_queries("throughput"), *read_panel_queries("tiers")]
    assert len(queries) > 40
    wanted = {query.where: query.text for query in queries}
    wanted |= {
        found: found
        for rule in rules
        for found in SELECTOR.findall(rule["expr"])
        if "glinthawk_operator" not in found
    }
    with watched(tmp_path) as live, under_load(live), calling(live):
        live.prometheus.await_data(wanted)
        for rule in rules:
            live.prometheus.ask(rule["expr"])
