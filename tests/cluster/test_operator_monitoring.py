"""The operator's dashboard and alerts, against a real Prometheus that scrapes a real operator."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.control_plane import NoControlPlane
from prometheus_runs import NO_PROMETHEUS, TEST_S, find_prometheus, read_panel_queries
from watched_operator import GIB, WatchedOperator, watched_operator

pytestmark = [
    pytest.mark.skipif(find_prometheus() is None, reason=NO_PROMETHEUS),
    pytest.mark.timeout(TEST_S),
]


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[WatchedOperator]:
    try:
        with watched_operator(tmp_path) as operator:
            yield operator
    except NoControlPlane as reason:
        pytest.skip(str(reason))
    finally:
        log = tmp_path / "operator.log"
        print(log.read_text(encoding="utf-8")[-4000:] if log.exists() else "")


def test_panels_have_figures_and_alerts_fire_by_their_faults(watched: WatchedOperator) -> None:
    prometheus = watched.prometheus
    watched.apply("good")
    watched.await_status("good", "Ready", "True")
    watched.fleet.demanded = 3 * GIB
    watched.await_figure("glinthawk_operator_ready_workers == 4")
    assert not prometheus.ask('ALERTS{alertstate="firing"}')

    watched.apply("bad", gpuTier={"stages": 2, "device": "cpu", "image": "missing:1"})
    prometheus.await_firing("GlinthawkDegraded")
    fired = prometheus.ask('ALERTS{alertname="GlinthawkDegraded", alertstate="firing"}')
    assert [one["metric"]["deployment"] for one in fired] == ["bad"]

    watched.proxy.share = 1.0  # the API server is away
    prometheus.await_firing("GlinthawkNoOperatorActs")
    watched.proxy.share = 0.0
    prometheus.await_over("GlinthawkNoOperatorActs")

    watched.gateway.close()
    # Errors first: a silent gateway is asked less and less often, in the time of life.
    prometheus.await_firing("GlinthawkOperatorErrors")
    prometheus.await_firing("GlinthawkScalingFrozen")

    queries = read_panel_queries("operator")
    assert len(queries) > 15
    prometheus.await_data({query.where: query.text for query in queries})
