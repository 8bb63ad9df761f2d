"""The commands round a gateway, as processes, against a real `glinthawk up`.

The tests stand in the order of a gateway's life: the last one ends it.
"""

import contextlib
import json
import os
import pty
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
import psutil
import pytest

from factories_models import make_tiny_model
from glinthawk.gateway.sidecar import RemoteRun, read_sidecar, sidecar_path
from glinthawk.wire.grpc_server import open_channel, secret_metadata
from glinthawk.wire.proto import gateway_pb2 as pb
from glinthawk.wire.stubs import inference_stub, jobs_stub, operations_stub

WAIT_S = 180.0
SECRET = "the-secret-of-the-cluster"
WORKERS = ["attention-0", "attention-1"]


def wait_until(is_true: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not is_true():
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.05)


def find_free_ports(number: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [int(one.getsockname()[1]) for one in sockets]
    for one in sockets:
        one.close()
    return ports


@dataclass
class Up:
    """A running `glinthawk up`, and one of its keys."""

    popen: subprocess.Popen[bytes]
    folder: Path
    url: str
    control: str
    grpc_address: str
    key: str = ""

    @property
    def data_dir(self) -> str:
        return str(self.folder / "data")

    @property
    def key_file(self) -> Path:
        return self.folder / "key"

    def command(self, *arguments: str) -> list[str]:
        """Return a command line; those that need it get the control API and its secret."""
        extra: Sequence[str] = ()
        if arguments[0] in ("status", "drain"):
            extra = ("--control", self.control, "--secret-file", str(self.folder / "secret"))
        return [sys.executable, "-m", "glinthawk", *arguments, *extra]

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*arguments),
            capture_output=True,
            text=True,
            timeout=WAIT_S,
            env=os.environ | environment,
        )

    def inspect(self) -> dict[str, Any]:
        shown = self.run("status", "--json")
        assert shown.returncode == 0, shown.stderr
        document: dict[str, Any] = json.loads(shown.stdout)
        return document

    def batch(self, source: Path, output: Path, *more: str) -> list[str]:
        files = (str(source), "--output", str(output), "--gateway", self.url)
        return self.command("batch", *files, "--api-key-file", str(self.key_file), *more)

    def list_batches(self) -> list[dict[str, Any]]:
        headers = {"authorization": f"Bearer {self.key}"}
        answer = httpx.get(f"{self.url}/v1/batches", headers=headers, timeout=WAIT_S)
        batches: list[dict[str, Any]] = answer.json()["data"]
        return batches


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    folder = tmp_path_factory.mktemp("up")
    model = make_tiny_model("llama3", folder / "model")
    (folder / "secret").write_text(SECRET + "\n")
    port, listen, control = find_free_ports(3)
    command = [sys.executable, "-m", "glinthawk", "up", "--model", str(model)]
    command += ["--served-model-name", "tiny", "--data-dir", str(folder / "data")]
    command += ["--port", str(port), "--listen", f"127.0.0.1:{listen}"]
    command += ["--control-port", str(control), "--kv-memory", "32MiB", "--dtype", "float32"]
    command += ["--attention-workers", "2", "--threads", "1", "--keys", "on"]
    command += ["--secret-file", str(folder / "secret"), "--log-format", "json"]
    with (folder / "log").open("wb") as log:
        popen = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    gateway = Up(
        popen,
        folder,
        f"http://127.0.0.1:{port}",
        f"http://127.0.0.1:{control}",
        f"127.0.0.1:{listen}",
    )
    children = []
    try:
        wait_until(lambda: is_ready(gateway), (folder / "log").read_text()[-2000:])
        children = psutil.Process(popen.pid).children(recursive=True)
        yield gateway
    finally:
        for process in (popen, *children):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        popen.wait()


def is_ready(gateway: Up) -> bool:
    assert gateway.popen.poll() is None, (gateway.folder / "log").read_text()
    try:
        return httpx.get(f"{gateway.url}/ready", timeout=WAIT_S).status_code == 200
    except httpx.HTTPError:
        return False


# --- keys


def can_list_models(up: Up, key: str) -> bool:
    headers = {"authorization": f"Bearer {key}"}
    return httpx.get(f"{up.url}/v1/models", headers=headers, timeout=WAIT_S).status_code == 200


def test_a_key_is_made_shown_once_listed_and_revoked_beside_the_gateway(up: Up) -> None:
    made = up.run("keys", "create", "alice", "--data-dir", up.data_dir)
    assert made.returncode == 0, made.stderr
    key = made.stdout.strip()
    assert made.stdout == key + "\n"
    wait_until(lambda: can_list_models(up, key), "the new key is known")
    again = up.run("keys", "create", "alice", "--data-dir", up.data_dir)
    assert (again.returncode, again.stdout) == (1, "")
    assert "revoke it first" in again.stderr
    listed = up.run("keys", "list", GLINTHAWK_DATA_DIR=up.data_dir)
    assert listed.returncode == 0, listed.stderr
    head, row = listed.stdout.splitlines()
    assert head.split() == ["name", "created", "revoked"]
    assert row.split()[0] == "alice"
    assert row.split()[-1] == "-"
    assert key not in listed.stdout
    revoked = up.run("keys", "revoke", "alice", "--data-dir", up.data_dir)
    assert revoked.returncode == 0, revoked.stderr
    wait_until(lambda: not can_list_models(up, key), "the revoked key is refused")
    assert up.run("keys", "revoke", "alice", "--data-dir", up.data_dir).returncode == 1
    # The key that the other tests use.
    up.key = up.run("keys", "create", "batch", "--data-dir", up.data_dir).stdout.strip()
    up.key_file.write_text(up.key + "\n")
    wait_until(lambda: can_list_models(up, up.key), "the next key is known")


# --- status and drain


def test_status_shows_tiers_and_workers(up: Up) -> None:
    document = up.inspect()
    assert document["is_ready"] is True
    assert sorted(worker["name"] for worker in document["workers"]) == WORKERS
    assert document["kv"]["capacity_bytes"] > 0
    shown = up.run("status")
    assert shown.returncode == 0, shown.stderr
    for part in ("ready", "tiny", "stage-0", *WORKERS, "KV demanded"):
        assert part in shown.stdout


def test_status_needs_the_secret_and_a_gateway(up: Up) -> None:
    command = [sys.executable, "-m", "glinthawk", "status"]
    bare = subprocess.run([*command, "--control", up.control], capture_output=True, text=True)
    assert bare.returncode == 1
    assert "secret is missing or wrong" in bare.stderr
    (port,) = find_free_ports(1)
    url = f"http://127.0.0.1:{port}"
    alone = subprocess.run([*command, "--control", url], capture_output=True, text=True)
    assert alone.returncode == 1
    assert f"no gateway answers at {url}" in alone.stderr


def test_watching_goes_on_until_ctrl_c(up: Up) -> None:
    ours, terminal = pty.openpty()
    process = subprocess.Popen(
        up.command("status", "--watch"), stdout=terminal, stderr=subprocess.PIPE, text=True
    )
    os.close(terminal)
    with os.fdopen(ours, "rb", buffering=0) as screen:
        shown = b""
        while shown.count(b"KV capacity") < 3:
            shown += screen.read(4096)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=WAIT_S)
    assert process.returncode == 130, errors
    assert b"attention-1" in shown
    assert "Traceback" not in errors


def get_state(up: Up, worker: str) -> str:
    states = {one["name"]: one["state"] for one in up.inspect()["workers"]}
    return str(states[worker])


def test_a_worker_is_drained_and_taken_back(up: Up) -> None:
    drained = up.run("drain", "attention-1", "--deadline", "60", "--wait")
    assert drained.returncode == 0, drained.stderr
    assert "is drained" in drained.stderr
    assert get_state(up, "attention-1") == "drained"
    cancelled = up.run("drain", "attention-1", "--cancel")
    assert cancelled.returncode == 0, cancelled.stderr
    wait_until(lambda: get_state(up, "attention-1") == "active", "the drain is taken back")
    unknown = up.run("drain", "nobody")
    assert unknown.returncode == 1
    assert "no attention worker 'nobody'" in unknown.stderr


# --- a batch


def write_input(path: Path, num_lines: int, num_tokens: int) -> None:
    body = {"model": "tiny", "max_tokens": num_tokens, "ignore_eos": True, "temperature": 0}
    lines = [
        {
            "custom_id": f"r-{index}",
            "method": "POST",
            "url": "/v1/completions",
            "body": body | {"prompt": f"The hawk number {index}"},
        }
        for index in range(num_lines)
    ]
    lines[3]["body"]["temperature"] = 9  # type: ignore[index]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + "no JSON\n")


def has_batch(output: Path) -> bool:
    sidecar = read_sidecar(sidecar_path(output))
    return sidecar is not None and sidecar.remote is not None and bool(sidecar.remote.batch_id)


def read_lines(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.read_text().splitlines()]


@contextlib.contextmanager
def at_rest(up: Up) -> Iterator[None]:
    """Let nothing be generated meanwhile: no worker takes a sequence."""
    paths = [f"{up.control}/v1/workers/{worker}/drain" for worker in WORKERS]
    headers = {"authorization": f"Bearer {SECRET}"}
    for path in paths:
        httpx.put(path, headers=headers, timeout=WAIT_S, json={}).raise_for_status()
    yield
    for path in paths:
        httpx.delete(path, headers=headers, timeout=WAIT_S).raise_for_status()


def test_a_batch_outlives_its_client_and_every_line_is_answered_once(
    up: Up, tmp_path: Path
) -> None:
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    write_input(source, 120, 20)
    with at_rest(up):
        client = subprocess.Popen(up.batch(source, output), stderr=subprocess.DEVNULL)
        wait_until(lambda: has_batch(output), "a batch is made")
        client.kill()
        client.wait()
        (batch,) = up.list_batches()
        assert batch["status"] in ("validating", "in_progress")
        assert output.read_bytes() == b""

        following = subprocess.Popen(up.batch(source, output), stderr=subprocess.PIPE, text=True)
        assert following.stderr is not None
        assert batch["id"] in following.stderr.readline()
        following.send_signal(signal.SIGINT)
        _, errors = following.communicate(timeout=WAIT_S)
        assert following.returncode == 130, errors
        assert f"batch {batch['id']} goes on at {up.url}" in errors

        wait_until(
            lambda: [job["batch_id"] for job in up.inspect()["jobs"]] == [batch["id"]],
            "the batch is shown",
        )
        other = tmp_path / "other.jsonl"
        write_input(other, 5, 4)
        refused = subprocess.run(up.batch(other, output), capture_output=True, text=True)
        assert refused.returncode == 2
        assert "another input file" in refused.stderr

    ended = subprocess.run(up.batch(source, output), capture_output=True, text=True, timeout=WAIT_S)
    assert ended.returncode == 0, ended.stderr
    assert [one["id"] for one in up.list_batches()] == [batch["id"]]
    lines = read_lines(output)
    counts = Counter(line["custom_id"] for line in lines)
    assert counts == Counter([f"r-{index}" for index in range(120)] + [None])
    failed = [line for line in lines if line["response"]["status_code"] != 200]
    assert {line["custom_id"] for line in failed} == {"r-3", None}
    assert all(line["response"]["body"]["error"]["message"] for line in failed)
    assert all(line["error"] is None for line in lines)

    # A client that died before it knew its batch finds it by the mark, and fetches it again.
    path = sidecar_path(output)
    sidecar = read_sidecar(path)
    assert sidecar is not None
    assert sidecar.remote == RemoteRun(sidecar.remote.mark, batch["id"], "completed")  # type: ignore[union-attr]
    whole = output.read_bytes()
    note = json.loads(path.read_text())
    note["remote"] |= {"batch_id": None, "status": None}
    path.write_text(json.dumps(note))
    output.write_bytes(whole[:500])
    found = subprocess.run(up.batch(source, output), capture_output=True, text=True, timeout=WAIT_S)
    assert found.returncode == 0, found.stderr
    assert [one["id"] for one in up.list_batches()] == [batch["id"]]
    assert output.read_bytes() == whole


def test_a_batch_without_a_valid_key_is_refused(up: Up, tmp_path: Path) -> None:
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    write_input(source, 5, 4)
    command = up.command("batch", str(source), "--output", str(output), "--gateway", up.url)
    refused = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"GLINTHAWK_API_KEY": "wrong"}
    )
    assert refused.returncode == 1
    assert "GLINTHAWK_API_KEY" in refused.stderr
    ended = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"GLINTHAWK_API_KEY": up.key}
    )
    assert ended.returncode == 0, ended.stderr
    assert len(read_lines(output)) == 6


# --- gRPC


def bearer(key: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {key}"),)


def make_generate(num_tokens: int, **more: Any) -> pb.GenerateRequest:
    body = {"model": "tiny", "prompt": "The hawk", "temperature": 0, "max_tokens": num_tokens}
    text = json.dumps(body | {"ignore_eos": True} | more)
    return pb.GenerateRequest(endpoint="/v1/completions", body_json=text.encode())


def test_generate_streams_the_text_that_http_answers(up: Up) -> None:
    with open_channel(up.grpc_address) as channel:
        replies = list(
            inference_stub(channel).Generate(
                make_generate(12, n=2), timeout=WAIT_S, metadata=bearer(up.key)
            )
        )
    body = json.loads(replies[-1].body_json)
    deltas = [reply.delta for reply in replies[:-1]]
    for choice in body["choices"]:
        mine = [delta for delta in deltas if delta.index == choice["index"]]
        assert "".join(delta.text for delta in mine) == choice["text"]
        assert sum(len(delta.tokens) for delta in mine) == 12
        assert mine[-1].finish_reason == "length"
    over_http = httpx.post(
        f"{up.url}/v1/completions",
        headers={"authorization": f"Bearer {up.key}"},
        json=json.loads(make_generate(12, n=2).body_json),
        timeout=WAIT_S,
    ).json()
    texts = [choice["text"] for choice in over_http["choices"]]
    assert [choice["text"] for choice in body["choices"]] == texts


def test_generate_that_is_cancelled_frees_its_memory(up: Up) -> None:
    def measure() -> tuple[int, int]:
        headers = {"authorization": f"Bearer {SECRET}"}
        answer = httpx.get(f"{up.control}/v1/inspection", headers=headers, timeout=WAIT_S).json()
        return answer["kv"]["used_bytes"], answer["num_decoding"]

    with open_channel(up.grpc_address) as channel:
        call = inference_stub(channel).Generate(
            make_generate(1900, n=8), timeout=WAIT_S, metadata=bearer(up.key)
        )
        assert next(iter(call)).delta.tokens
        wait_until(lambda: min(measure()) > 0, "KV is held")
        assert call.cancel()
        wait_until(lambda: measure() == (0, 0), "no KV is held")


def test_each_service_asks_for_its_own_credential(up: Up) -> None:
    with open_channel(up.grpc_address) as channel:
        jobs, operations = jobs_stub(channel), operations_stub(channel)
        listed = jobs.ListJobs(pb.ListJobsRequest(), timeout=WAIT_S, metadata=bearer(up.key))
        assert {job.status for job in listed.jobs} == {"completed"}
        assert [job.id for job in listed.jobs] == [one["id"] for one in up.list_batches()]
        told = operations.Inspect(
            pb.InspectRequest(), timeout=WAIT_S, metadata=secret_metadata(SECRET)
        )
        assert json.loads(told.inspection_json)["model"] == "tiny"
        with pytest.raises(grpc.RpcError) as with_secret:
            jobs.ListJobs(pb.ListJobsRequest(), timeout=WAIT_S, metadata=secret_metadata(SECRET))
        with pytest.raises(grpc.RpcError) as with_key:
            operations.Inspect(pb.InspectRequest(), timeout=WAIT_S, metadata=bearer(up.key))
    for caught in (with_secret, with_key):
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED  # type: ignore[attr-defined]


# --- the end


def test_a_taken_port_is_refused_by_its_option(up: Up, tmp_path: Path) -> None:
    port, listen = find_free_ports(2)
    command = up.command("gateway", "--model", str(up.folder / "model"), "--port", str(port))
    command += ["--listen", f"127.0.0.1:{listen}", "--data-dir", str(tmp_path / "data")]
    command += ["--control-port", up.control.rpartition(":")[2]]
    refused = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S)
    assert refused.returncode == 2
    assert "give --control-port a free port" in refused.stderr


def test_a_second_gateway_on_the_store_is_refused(up: Up) -> None:
    command = up.command("gateway", "--model", str(up.folder / "model"), "--port", "0")
    command += ["--listen", "127.0.0.1:0", "--data-dir", up.data_dir]
    refused = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S)
    assert refused.returncode == 2
    assert up.data_dir in refused.stderr


def test_sigterm_ends_all_of_it(up: Up) -> None:
    children = psutil.Process(up.popen.pid).children(recursive=True)
    assert len(children) >= 3
    up.popen.send_signal(signal.SIGTERM)
    assert up.popen.wait(WAIT_S) == 0, (up.folder / "log").read_text()[-4000:]
    assert [child for child in children if child.is_running()] == []
