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
from glinthawk.wire.control import fetch_description

GATEWAY = 17081
PORTS = {"gateway": (GATEWAY, 17082), "stage": (17083, 17084), "attention": (17085, 17086)}
DEADLINE_S = 10.0
KV_MEMORY = 4 << 20
"""Far less than the job could use, so that the cache is full most of the time."""


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A gateway with a job that lasts, a stage and a worker, all on known ports."""
    folder = tmp_path_factory.mktemp("system")
    model = make_tiny_model("smollm2", folder / "model")
    lines = [
        completion(f"r{index}", [4, 5, index + 3], max_tokens=500, ignore_eos=True)
        for index in range(2000)
    ]
    source = write_lines(folder / "in.jsonl", lines)
    roles = []
    for role in ("stage", "attention"):
        grpc_port, metrics_port = PORTS[role]
        options = ("--gateway", f"127.0.0.1:{GATEWAY}", "--name", f"the-{role}")
        ports = ("--grpc-port", str(grpc_port), "--metrics-port", str(metrics_port))
        more = ("--model", str(model)) if role == "stage" else ("--kv-memory", str(KV_MEMORY))
        roles.append([sys.executable, "-m", "glinthawk", role, *options, *ports, *more])
    listen = ("--listen", f"127.0.0.1:{GATEWAY}", "--metrics-port", str(PORTS["gateway"][1]))
    batch = batch_command(source, folder / "out.jsonl", "--model", str(model), *listen)
    log = (folder / "log.txt").open("wb")
    processes = [subprocess.Popen(command, stderr=log) for command in [*roles, batch]]
    try:
        wait_for_tokens(folder / "log.txt")
        yield
    finally:
        for process in reversed(processes):
            process.send_signal(signal.SIGTERM)
        codes = [process.wait(20) for process in processes]
        log.close()
    assert codes == [0, 0, 130]


def wait_for_tokens(log: Path) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            figures = read_metrics("gateway")
            # Gauges are set now and then, so they come after the first token.
            if min(figures["glinthawk_tokens_out_total"], figures["glinthawk_kv_used_bytes"]) > 0:
                return
        except OSError:
            pass
        time.sleep(0.2)
    pytest.fail(f"no token in 60 s: {log.read_text()[-3000:]}")


def read_metrics(role: str) -> dict[str, float]:
    """Return the sum over labels of each figure that a process shows."""
    url = f"http://127.0.0.1:{PORTS[role][1]}/metrics"
    with urllib.request.urlopen(url, timeout=DEADLINE_S) as reply:
        text = reply.read().decode()
    return {
        match[1]: float(match[2])
        for match in re.finditer(r"^(glinthawk_\w+) (\S+)$", text, flags=re.MULTILINE)
    }


@pytest.mark.usefixtures("system")
@pytest.mark.parametrize("role", PORTS)
def test_health_and_reflection(role: str) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{PORTS[role][0]}") as channel:
        health = health_pb2_grpc.HealthStub(channel)
        reply = health.Check(health_pb2.HealthCheckRequest(), timeout=DEADLINE_S)
        assert reply.status == health_pb2.HealthCheckResponse.SERVING
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        reflection = reflection_pb2_grpc.ServerReflectionStub(channel)
        answer = next(iter(reflection.ServerReflectionInfo(iter([request]), timeout=DEADLINE_S)))
    services = {service.name for service in answer.list_services_response.service}
    own = {"glinthawk.v1.Membership"} if role == "gateway" else {"glinthawk.v1.Data"}
    assert {"grpc.health.v1.Health", "glinthawk.v1.Control", *own} <= services


@pytest.mark.usefixtures("system")
@pytest.mark.parametrize("role", PORTS)
def test_a_process_describes_itself(role: str) -> None:
    description = fetch_description(f"127.0.0.1:{PORTS[role][0]}", timeout_s=DEADLINE_S)
    assert description.role == role
    assert description.version


@pytest.mark.usefixtures("system")
def test_metrics_move_with_the_work() -> None:
    gateway, stage, attention = (read_metrics(role) for role in PORTS)
    for name in ("tokens_in", "tokens_out", "steps", "requests", "sent_bytes", "received_bytes"):
        assert gateway[f"glinthawk_{name}_total"] > 0, name
    assert 0 < gateway["glinthawk_kv_used_bytes"] <= gateway["glinthawk_kv_capacity_bytes"]
    assert gateway["glinthawk_kv_demanded_bytes"] > 0
    assert gateway["glinthawk_queue_depth"] >= 0
    assert gateway["glinthawk_lane_rows_count"] > 0
    assert stage["glinthawk_segment_seconds_count"] > 0
    assert stage["glinthawk_transfer_seconds_count"] > 0
    assert stage["glinthawk_batch_rows_count"] > 0
    assert stage["glinthawk_stage_busy_seconds_total"] > 0
    assert stage["glinthawk_sent_bytes_total"] > stage["glinthawk_steps_total"]
    assert attention["glinthawk_attention_seconds_count"] > 0
    assert attention["glinthawk_attention_busy_seconds_total"] > 0
    assert attention["glinthawk_kv_used_bytes"] > 0
    assert attention["glinthawk_received_bytes_total"] > 0


@pytest.mark.usefixtures("system")
def test_kv_is_never_above_its_memory_and_both_sides_count_the_same_capacity() -> None:
    capacity = read_metrics("attention")["glinthawk_kv_capacity_bytes"]
    assert capacity == read_metrics("gateway")["glinthawk_kv_capacity_bytes"]
    highest = 0.0
    deadline = time.monotonic() + 60
    while highest < capacity / 2 and time.monotonic() < deadline:
        used = read_metrics("attention")["glinthawk_kv_used_bytes"]
        assert used <= capacity <= KV_MEMORY
        highest = max(highest, used)
        time.sleep(0.01)
    assert highest >= capacity / 2, "the job never filled half of the cache"


def test_ports_in_use_are_a_refusal_that_names_them(tmp_path: Path) -> None:
    port = "17087"
    environment = {**os.environ, "GLINTHAWK_ATTENTION_METRICS_PORT": port}
    command = [sys.executable, "-m", "glinthawk", "attention", "--grpc-port", port]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=False, env=environment
    )
    assert done.returncode == 2
    assert port in done.stderr
