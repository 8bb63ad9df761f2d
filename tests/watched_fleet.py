"""A small live deployment, load on it, and a real Prometheus over it."""

import contextlib
import json
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from factories_models import make_tiny_model
from glinthawk.bench.client import FINAL
from glinthawk.bench.fleet import Fleet, FleetSettings, Life, find_ports, fleet_of
from glinthawk.errors import GlinthawkError
from prometheus_runs import (
    FASTER,
    Prometheus,
    find_prometheus,
    member_labels,
    prometheus_in,
    wait_until,
)
from relay import ADDRESS, Relay

BINARY = find_prometheus()


@dataclass(frozen=True)
class Size:
    """How large a deployment is. model: further fields of its configuration."""

    num_stages: int = 2
    num_workers: int = 2
    kv_memory: str = "8MiB"
    model: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Live:
    """A deployment, and what watches it."""

    fleet: Fleet
    prometheus: Prometheus
    folder: Path
    size: Size

    def watch(self, name: str) -> None:
        """Scrape a process of the fleet, as soon as it says where its figures are."""
        log = self.folder / "fleet" / f"{name}.log"
        wait_until(lambda: find_metrics_port(log) is not None, f"{name} shows figures")
        self.prometheus.watch(find_metrics_port(log) or 0, member_labels(name))

    def num_active(self) -> int:
        """Return how many workers take new sequences."""
        workers = self.fleet.control.inspect()["workers"]
        return sum(worker["state"] == "active" for worker in workers)


def lines_of(count: int, **more: Any) -> bytes:
    """Return a batch file; the more lines the longer it takes."""
    body = {"prompt": "one two three four", "max_tokens": 200, "ignore_eos": True, **more}
    lines = [
        {"custom_id": f"r{i}", "method": "POST", "url": "/v1/completions", "body": body}
        for i in range(count)
    ]
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


def submit(fleet: Fleet, content: bytes, label: str) -> None:
    """Have a batch file answered."""
    file_id = fleet.api.upload(content, f"{label}.jsonl")
    fleet.api.create_batch(file_id, "/v1/completions", label)


def find_metrics_port(log: Path) -> int | None:
    """Return the port that a process says it shows its figures on, None while it says none."""
    for line in reversed(log.read_text(encoding="utf-8").splitlines()):
        with contextlib.suppress(ValueError):
            entry = json.loads(line)
            if entry.get("event") == "listening":
                return int(entry["metrics_port"])
    return None


@contextlib.contextmanager
def watched(folder: Path, size: Size = Size(), faster: int = FASTER) -> Iterator[Live]:
    """Yield a deployment of a tiny model that works, with a Prometheus over it; see there."""
    assert BINARY is not None
    model = str(make_tiny_model("llama3", folder / "llama3", **size.model))
    settings = FleetSettings(
        model, folder / "fleet", size.num_stages, size.num_workers, size.kv_memory
    )
    with fleet_of(settings) as fleet, prometheus_in(folder, BINARY, faster) as prometheus:
        live = Live(fleet, prometheus, folder, size)
        crew = fleet.crew()
        for name in ("gateway", *crew.stages, *crew.workers):
            live.watch(name)
        wait_until(lambda: prometheus.has_data("glinthawk_ready == 1"), "figures are there")
        yield live


@contextlib.contextmanager
def under_load(live: Live, num_lines: int = 400, **more: Any) -> Iterator[None]:
    """Keep a batch running, whatever the machine's speed."""
    over = threading.Event()

    def feed() -> None:
        number = 0
        while not over.wait(0.2):
            with contextlib.suppress(GlinthawkError):
                if number == 0 or _is_over(live.fleet, f"load-{number}"):
                    number += 1
                    submit(live.fleet, lines_of(num_lines, **more), f"load-{number}")

    feeder = threading.Thread(target=feed)
    feeder.start()
    try:
        yield
    finally:
        over.set()
        feeder.join()


@contextlib.contextmanager
def calling(live: Live) -> Iterator[None]:
    """Call the API now and then, some calls with a model that there is not."""
    over = threading.Event()

    def call() -> None:
        good = {"model": str(live.folder / "llama3"), "prompt": "one two three", "max_tokens": 20}
        number = 0
        while not over.wait(0.5):
            number += 1
            with contextlib.suppress(GlinthawkError):
                live.fleet.api.complete(good if number % 4 else {**good, "model": "another"})

    caller = threading.Thread(target=call)
    caller.start()
    try:
        yield
    finally:
        over.set()
        caller.join()


def _is_over(fleet: Fleet, label: str) -> bool:
    batch_id = fleet.api.find_batch(label)
    return batch_id is None or fleet.api.batch(batch_id)["status"] in FINAL


@contextlib.contextmanager
def behind_a_relay(live: Live) -> Iterator[tuple[Relay, Life]]:
    """Yield a worker, and the relay through which alone it is reached; no other one is left.

    It speaks to the gateway directly, so that its heartbeats come whatever becomes of its frames.
    """
    grpc_port, data_port = find_ports(2)
    relay = Relay((grpc_port, data_port))
    options = {
        "--name": "worker-relayed",
        "--gateway": live.fleet.gateway_address,
        "--kv-memory": live.size.kv_memory,
        "--threads": "1",
        "--log-format": "json",
        "--grpc-port": str(grpc_port),
        "--data-port": str(data_port),
        "--advertise-host": ADDRESS,
    }
    log = live.folder / "fleet" / "worker-relayed.log"
    arguments = ["attention", *(text for pair in options.items() for text in pair)]
    life = Life("worker-relayed", arguments, log)
    try:
        wait_until(lambda: live.num_active() == live.size.num_workers + 1, "the relayed worker")
        for name in live.fleet.crew().workers:
            live.fleet.life(name).kill()
            live.fleet.remove(name)
        wait_until(lambda: live.num_active() == 1, "the relayed one is alone")
        live.watch(life.name)
        yield relay, life
    finally:
        relay.close()
        life.kill()
