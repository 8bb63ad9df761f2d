"""Every query of the dashboards and alerts, put to a real Prometheus over a live deployment."""

import contextlib
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from factories_models import make_tiny_model
from glinthawk.bench.fleet import Fleet, FleetSettings, find_ports, fleet_of
from glinthawk.errors import GlinthawkError
from prometheus_runs import (
    Prometheus,
    find_prometheus,
    prometheus_over,
    read_panel_queries,
    read_rules,
    wait_until,
)

BINARY = find_prometheus()
pytestmark = pytest.mark.skipif(
    BINARY is None, reason="prometheus is neither on the PATH nor in KUBEBUILDER_ASSETS"
)
SELECTOR = re.compile(r"glinthawk_\w+(?:\{[^}]*\})?")
NAMES = ("gateway", "stage-0", "stage-1", "worker-0", "worker-1")


@dataclass(frozen=True)
class Live:
    """A deployment under load, and what watches it."""

    fleet: Fleet
    prometheus: Prometheus


def lines_of(count: int, **more: Any) -> bytes:
    """Return a batch file; the more lines the longer it takes."""
    body = {"prompt": "one two three four", "max_tokens": 200, "ignore_eos": True, **more}
    lines = [
        {"custom_id": f"r{i}", "method": "POST", "url": "/v1/completions", "body": body}
        for i in range(count)
    ]
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


def submit(fleet: Fleet, content: bytes, label: str) -> None:
    file_id = fleet.api.upload(content, f"{label}.jsonl")
    fleet.api.create_batch(file_id, "/v1/completions", label)


def read_metrics_port(log: Path) -> int:
    """Return the port that a process says it shows its figures on."""
    for line in log.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(ValueError):
            entry = json.loads(line)
            if entry.get("event") == "listening":
                return int(entry["metrics_port"])
    raise AssertionError(f"{log} names no port of metrics")


@contextlib.contextmanager
def watched(folder: Path, kv_memory: str) -> Iterator[Live]:
    """Yield a tiny deployment of two stages and two workers with a Prometheus over it."""
    assert BINARY is not None
    model = str(make_tiny_model("llama3", folder / "llama3"))
    settings = FleetSettings(model, folder / "fleet", 2, 2, kv_memory)
    with fleet_of(settings) as fleet:
        ports = {name: read_metrics_port(folder / "fleet" / f"{name}.log") for name in NAMES}
        (port,) = find_ports(1)
        with prometheus_over(ports, folder, port, BINARY) as prometheus:
            yield Live(fleet, prometheus)


@contextlib.contextmanager
def under_load(live: Live) -> Iterator[None]:
    """Keep a batch running, whatever the machine's speed."""
    over = threading.Event()

    def feed() -> None:
        number = 0
        while not over.wait(0.2):
            with contextlib.suppress(GlinthawkError):
                if number == 0 or _is_over(live.fleet, f"load-{number}"):
                    number += 1
                    submit(live.fleet, lines_of(400), f"load-{number}")

    feeder = threading.Thread(target=feed)
    feeder.start()
    try:
        yield
    finally:
        over.set()
        feeder.join()


def _is_over(fleet: Fleet, label: str) -> bool:
    batch_id = fleet.api.find_batch(label)
    return batch_id is not None and fleet.api.batch(batch_id)["status"] == "completed"


def test_every_panel_and_alert_has_figures_of_a_live_deployment(tmp_path: Path) -> None:
    queries = [*read_panel_queries("throughput"), *read_panel_queries("tiers")]
    assert len(queries) > 40
    selectors = {
        found
        for group in read_rules()["groups"]
        for rule in group["rules"]
        for found in SELECTOR.findall(rule["expr"])
        if "glinthawk_operator" not in found
    }
    with watched(tmp_path, "8MiB") as live, under_load(live):
        missing = {query.where: query.text for query in queries}
        missing |= {selector: selector for selector in selectors}

        def all_have_data() -> bool:
            for where, text in list(missing.items()):
                if live.prometheus.has_data(text):
                    del missing[where]
            return not missing

        with contextlib.suppress(AssertionError):
            wait_until(all_have_data, "data")
        assert not missing
        for group in read_rules()["groups"]:
            for rule in group["rules"]:
                live.prometheus.ask(rule["expr"])


def test_alerts_fire_by_their_faults_and_not_before(tmp_path: Path) -> None:
    with watched(tmp_path, "2MiB") as live:
        fleet, prometheus = live.fleet, live.prometheus
        wait_until(lambda: prometheus.has_data("glinthawk_ready == 1"), "figures are there")
        assert not prometheus.ask('ALERTS{alertstate="firing"}')

        submit(fleet, lines_of(40, model="another"), "wrong")
        wait_until(lambda: prometheus.is_firing("GlinthawkLinesFail"), "GlinthawkLinesFail")

        submit(fleet, lines_of(2000), "large")
        wait_until(lambda: prometheus.is_firing("GlinthawkKVPressure"), "GlinthawkKVPressure")

        for name in ("worker-0", "worker-1"):
            fleet.life(name).kill()
            fleet.remove(name)
        wait_until(lambda: prometheus.is_firing("GlinthawkNotReady"), "GlinthawkNotReady")

        fleet.life("gateway").kill()
        fleet.remove("gateway")
        wait_until(lambda: prometheus.is_firing("GlinthawkGatewayDown"), "GlinthawkGatewayDown")
