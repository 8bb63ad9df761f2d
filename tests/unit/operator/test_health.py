"""Pages for the kubelet and Prometheus."""

from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
from prometheus_client import CollectorRegistry

from glinthawk_operator.errors import InvalidSettings
from glinthawk_operator.health import PageServer, health_page, metrics_page
from glinthawk_operator.metrics import OperatorMetrics


def test_is_alive_until_it_is_not() -> None:
    alive = [True]
    server = PageServer("127.0.0.1", 0, {"/healthz": health_page(lambda: alive[0])})
    try:
        url = f"http://127.0.0.1:{server.port}"
        with urlopen(f"{url}/healthz") as answer:
            assert answer.status == 200
        alive[0] = False
        for path, code in (("/healthz", 503), ("/other", 404)):
            with pytest.raises(HTTPError) as raised:
                urlopen(url + path)
            assert raised.value.code == code
            raised.value.close()
    finally:
        server.close()


def test_figures_of_a_resource_go_with_it() -> None:
    metrics = OperatorMetrics(CollectorRegistry())
    metrics.wanted.labels("ns", "demo").set(3)
    page = metrics_page(metrics.registry)
    assert b'glinthawk_operator_wanted_workers{deployment="demo",namespace="ns"} 3.0' in page()[2]
    metrics.forget("ns", "demo")
    assert b"demo" not in page()[2]


def test_a_port_that_is_taken_is_said() -> None:
    server = PageServer("127.0.0.1", 0, {})
    try:
        with pytest.raises(InvalidSettings, match="choose a free port"):
            PageServer("127.0.0.1", server.port, {})
    finally:
        server.close()
