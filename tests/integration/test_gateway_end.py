"""How a gateway ends: in bounded time whatever hangs, and never by half."""

import contextlib
import json
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest

from factories_models import make_tiny_model
from glinthawk.bench.client import Patient
from glinthawk.bench.fleet import find_ports
from killed_runs import START_S, create_batch, make_lines, up

WAIT_S = 180.0

END_S = 30.0
"""What a signal to end may take in all."""

NUM_CALLERS = 40

DEFECTIVE = """
import sys

from glinthawk.cli import main
from {module} import {owner}


def fail(*_):
    raise ZeroDivisionError("a prompt")


{owner}.{method} = fail
sys.argv[0] = "glinthawk"
main()
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model("llama3", tmp_path_factory.mktemp("model") / "llama3")


@pytest.mark.parametrize(
    ("module", "owner", "method", "thread"),
    [
        ("glinthawk.wire.membership_server", "MembershipServer", "check_leases", "leases"),
        ("glinthawk.gateway.worker_sizes", "SizeBook", "keep", "worker-sizes"),
    ],
)
def test_a_gateway_ends_with_a_message_when_a_thread_of_it_has_a_defect(
    model: Path, tmp_path: Path, module: str, owner: str, method: str, thread: str
) -> None:
    http, listen, control = find_ports(3)
    program = DEFECTIVE.format(module=module, owner=owner, method=method)
    done = subprocess.run(
        [
            *(sys.executable, "-c", program, "gateway", "--model", str(model)),
            *("--data-dir", str(tmp_path / "data"), "--port", str(http)),
            *("--listen", f"127.0.0.1:{listen}", "--control-port", str(control)),
            *("--log-format", "json"),
        ],
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=False,
        env=os.environ | {"COLUMNS": "200"},
    )
    assert done.returncode == 1, done.stderr
    assert f"a defect in thread '{thread}' (ZeroDivisionError)" in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if '"thread_defect"' in line]
    assert json.loads(line)["thread"] == thread
    assert "a prompt" not in done.stderr


@contextmanager
def locked(data_dir: Path) -> Iterator[None]:
    """Hold the database's write lock, as another process does."""
    other = sqlite3.connect(data_dir / "glinthawk.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        other.close()


def try_to_delete(url: str) -> None:
    with contextlib.suppress(httpx.HTTPError):
        httpx.delete(f"{url}/v1/files/file-{'0' * 32}", timeout=WAIT_S)


def test_a_gateway_ends_in_time_and_leaves_nothing_behind_whatever_hangs(
    model: Path, tmp_path: Path
) -> None:
    """The store is locked while a batch runs, callers stand in line for it, and a worker hangs."""
    lines = make_lines(model, 400, 64)
    with up(model, tmp_path, "--attention-workers", "2", "--kv-memory", "8MiB") as command:
        command.start()
        wait_for_answers(command.patient, create_batch(command.patient, lines, "locked"))
        with locked(tmp_path / "data"), ThreadPoolExecutor(NUM_CALLERS) as callers:
            for _ in range(NUM_CALLERS):
                callers.submit(try_to_delete, command.url)
            time.sleep(1.0)
            command.processes[1].suspend()
            began_s = time.monotonic()
            assert command.stop(), "it was not over in time"
            took_s = time.monotonic() - began_s
        command.wait_until_nothing_is_left()
        assert took_s < END_S
        command.start()
        command.wait_until_ready()
        assert command.stop()


HANGING = """
import sys
import time

from glinthawk.cli import main
from glinthawk.gateway.jobs.runner import JobRunner


def hang(*_):
    print("hangs", flush=True)
    time.sleep(1000)


JobRunner._load = hang
sys.argv[0] = "glinthawk"
main()
"""


def test_a_volume_that_does_not_answer_holds_up_no_end(model: Path, tmp_path: Path) -> None:
    http, listen, control = find_ports(3)
    command = [sys.executable, "-c", HANGING, "up", "--model", str(model), "--dtype", "float32"]
    command += ["--data-dir", str(tmp_path / "data"), "--port", str(http)]
    command += ["--listen", f"127.0.0.1:{listen}", "--control-port", str(control)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "hangs\n"
            children = psutil.Process(process.pid).children(recursive=True)
            process.terminate()
            process.wait(END_S)
        finally:
            process.kill()
    assert psutil.wait_procs(children, timeout=WAIT_S)[1] == []


def test_a_gateway_that_starts_on_a_locked_store_ends_in_time(model: Path, tmp_path: Path) -> None:
    with up(model, tmp_path) as command:
        command.start()
        command.wait_until_ready()
        assert command.stop()
        with locked(tmp_path / "data"):
            command.start()
            time.sleep(2.0)
            began_s = time.monotonic()
            assert command.stop()
            took_s = time.monotonic() - began_s
        command.wait_until_nothing_is_left()
        assert took_s < END_S


def wait_for_answers(patient: Patient, batch_id: str) -> None:
    deadline = time.monotonic() + START_S
    while patient.client.batch(batch_id)["request_counts"]["completed"] < 10:
        assert time.monotonic() < deadline
        time.sleep(0.1)
