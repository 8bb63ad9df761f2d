"""What every process shows to the outside: health, reflection, description, metrics."""

import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from batch_runs import batch_command, completion, write_lines
from factories_models import make_tiny_model
from glinthawk.bench.fleet import find_ports
from glinthawk.wire.control import fetch_description

ROLES = ("gateway", "stage", "attention")
WAIT_S = 120.0
KV_MEMORY = 4 << 20
"""Far less than the job could use, so that the cache is full most of the time."""

Ports = dict[str, tuple[int, int]]
"""Of gRPC and of metrics, of each role."""


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ports]:
    """A gateway with a job that lasts, a stage and a worker, all on known ports."""
    folder = tmp_path_factory.mktemp("system")
    model = make_tiny_model("smollm2", folder / "model")
    lines = [
        completion(f"r{index}", [4, 5, index + 3], max_tokens=500, ignore_eos=True)
        for index in range(2000)
    ]
    source = write_lines(folder / "in.jsonl", lines)
    found = find_ports(2 * len(ROLES))
    ports = dict(zip(ROLES, zip(found[::2], found[1::2], strict=True), strict=True))
    address = f"127.0.0.1:{ports['gateway'][0]}"
    commands = []
    for role in ("stage", "attention"):
        grpc_port, metrics_port = ports[role]
        options = ("--gateway", address, "--name", f"the-{role}")
        listen = ("--grpc-port", str(grpc_port), "--metrics-port", str(metrics_port))
        more = ("--model", str(model)) if role == "stage" else ("--kv-memory", str(KV_MEMORY))
        commands.append([sys.executable, "-m", "glinthawk", role, *options, *listen, *more])
    listen = ("--listen", address, "--metrics-port", str(ports["gateway"][1]))
    batch = batch_command(source, folder / "out.jsonl", "--model", str(model), *listen)
    log = (folder / "log.txt").open("wb")
    processes = [subprocess.Popen(command, stderr=log) for command in [*commands, batch]]
    try:
        wait_for_tokens(ports, folder / "log.txt")
        yield ports
    finally:
        for process in reversed(processes):
            process.send_signal(signal.SIGTERM)
        codes = [process.wait(WAIT_S) for process in processes]
        log.close()
    assert codes == [0, 0, 130]


def wait_for_tokens(ports: Ports, log: Path) -> None:
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        try:
            # Gauges are set now and then, so they come after the first token.
            figures = read_metrics(ports["gateway"])
            if min(figures["glinthawk_tokens_out_total"], figures["glinthawk_kv_used_bytes"]) > 0:
                return
        except OSError:
            pass
        time.sleep(0.2)
    pytest.fail(f"no token in {WAIT_S:g} s: {log.read_text()[-3000:]}")


def read_metrics(ports: tuple[int, int]) -> dict[str, float]:
    """Return each figure that a process shows without labels."""
    with urllib.request.urlopen(f"http://127.0.0.1:{ports[1]}/metrics", timeout=WAIT_S) as reply:
        text = reply.read().decode()
    return {
        match[1]: float(match[2])
        for match in re.finditer(r"^(glinthawk_\w+) (\S+)$", text, flags=re.MULTILINE)
    }


@pytest.mark.parametrize("role", ROLES)
def test_health_and_reflection(system: Ports, role: str) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{system[role][0]}") as channel:
        health = health_pb2_grpc.HealthStub(channel)
        reply = health.Check(health_pb2.HealthCheckRequest(), timeout=WAIT_S)
        assert reply.status == health_pb2.HealthCheckResponse.SERVING
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        reflection = reflection_pb2_grpc.ServerReflectionStub(channel)
        answer = next(iter(reflection.ServerReflectionInfo(iter([request]), timeout=WAIT_S)))
    services = {service.name for service in answer.list_services_response.service}
    own = {"glinthawk.v1.Membership"} if role == "gateway" else {"glinthawk.v1.Data"}
    assert {"grpc.health.v1.Health", "glinthawk.v1.Control", *own} <= services


@pytest.mark.parametrize("role", ROLES)
def test_a_process_describes_itself(system: Ports, role: str) -> None:
    description = fetch_description(f"127.0.0.1:{system[role][0]}", timeout_s=WAIT_S)
    assert description.role == role
    assert description.version


MOVING = {
    "gateway": (
        *("tokens_in_total", "tokens_out_total", "steps_total", "requests_total"),
        *("sent_bytes_total", "received_bytes_total", "kv_used_bytes", "kv_demanded_bytes"),
        "lane_rows_count",
    ),
    "stage": (
        *("segment_seconds_count", "transfer_seconds_count", "batch_rows_count", "steps_total"),
        *("stage_busy_seconds_total", "sent_bytes_total"),
    ),
    "attention": (
        *("attention_seconds_count", "attention_busy_seconds_total", "kv_used_bytes"),
        "received_bytes_total",
    ),
}


@pytest.mark.parametrize("role", ROLES)
def test_metrics_move_with_the_work(system: Ports, role: str) -> None:
    missing: set[str] = set(MOVING[role])
    deadline = time.monotonic() + WAIT_S
    while missing and time.monotonic() < deadline:
        figures = read_metrics(system[role])
        missing = {name for name in missing if figures[f"glinthawk_{name}"] <= 0}
        time.sleep(0.05)
    assert not missing, "these stay at 0"


def test_kv_is_never_above_its_memory_and_both_sides_count_the_same_capacity(
    system: Ports,
) -> None:
    capacity = read_metrics(system["attention"])["glinthawk_kv_capacity_bytes"]
    gateway = read_metrics(system["gateway"])
    assert capacity == gateway["glinthawk_kv_capacity_bytes"]
    assert gateway["glinthawk_kv_used_bytes"] <= capacity
    assert gateway["glinthawk_queue_depth"] >= 0
    highest = 0.0
    deadline = time.monotonic() + WAIT_S
    while highest < capacity / 2 and time.monotonic() < deadline:
        used = read_metrics(system["attention"])["glinthawk_kv_used_bytes"]
        assert used <= capacity <= KV_MEMORY
        highest = max(highest, used)
        time.sleep(0.01)
    assert highest >= capacity / 2, "the job never filled half of the cache"


def test_ports_in_use_are_a_refusal_that_names_them() -> None:
    (port,) = map(str, find_ports(1))
    environment = {**os.environ, "GLINTHAWK_ATTENTION_METRICS_PORT": port}
    command = [sys.executable, "-m", "glinthawk", "attention", "--grpc-port", port]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=WAIT_S, check=False, env=environment
    )
    assert done.returncode == 2
    assert port in done.stderr
