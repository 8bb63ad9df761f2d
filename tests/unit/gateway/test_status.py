"""What `glinthawk status` shows, from documents as the inspection makes them."""

import io
import json
from dataclasses import replace

import httpx
import pytest
from fastapi import FastAPI
from rich.console import Console

from glinthawk.errors import InvariantBroken, NotFound, PeerUnavailable, Unauthenticated
from glinthawk.gateway import status
from glinthawk.gateway.control import build_control_app
from glinthawk.gateway.control_client import ControlClient
from glinthawk.gateway.inspection import Inspection, KvFigures, StageView, WorkerView
from glinthawk.gateway.jobs.job import JobProgress
from glinthawk.gateway.status import build_view, show_status, watch_status
from glinthawk.gateway.store.records import BatchStatus
from unit.gateway.controlling import EMPTY, Operations, connect, make_console, read, serve

MIB = 1 << 20
FULL = replace(
    EMPTY,
    is_ready=True,
    num_stages=1,
    stages=(StageView("stage-0", "10.0.0.5:1", 0, 30, 0.5),),
    workers=(
        WorkerView("w-2", None, "lost", 0, 0, 0, None),
        WorkerView("w-1", "10.0.0.6:1", "draining", 7, 32 * MIB, 64 * MIB, 0.25),
    ),
    kv=KvFigures(32 * MIB, 96 * MIB, 64 * MIB),
    num_waiting=1234,
    num_waiting_interactive=12,
    num_waiting_batch=1222,
    recomputed_tokens=5678,
    num_decoding=7,
    tokens_out_per_s=55.5,
    jobs=(
        JobProgress("batch_1", BatchStatus.IN_PROGRESS, 400, 100, 3, 77.7, 90.0),
        JobProgress("batch_2", BatchStatus.VALIDATING),
    ),
)


def render(inspection: Inspection) -> list[str]:
    console = make_console()
    console.print(build_view(json.loads(json.dumps(inspection.to_document()))))
    return read(console).splitlines()


def find_row(lines: list[str], begin: str) -> list[str]:
    (row,) = [line for line in lines if line.startswith(begin)]
    return row.split()


def test_a_gateway_without_tiers_says_what_is_missing() -> None:
    lines = render(EMPTY)
    assert lines[0].startswith("not ready  tiny")
    assert "2 of 2 stages are missing" in lines
    assert "no attention worker is known" in lines


def test_tiers_workers_and_memory_are_shown() -> None:
    lines = render(FULL)
    assert lines[0].startswith("ready")
    assert find_row(lines, "KV demanded")[2:] == ["96.0", "MiB", "(150%)"]
    assert find_row(lines, "stage-0") == ["stage-0", "0", "to", "29", "50%", "10.0.0.5:1"]
    row = "w-1 draining 7 32.0 MiB / 64.0 MiB 25% 10.0.0.6:1"
    assert find_row(lines, "w-1") == row.split()
    assert find_row(lines, "w-2")[1] == "lost"
    assert lines.index(next(x for x in lines if x.startswith("w-1"))) < lines.index(
        next(x for x in lines if x.startswith("w-2"))
    )
    assert "1,234 waiting (12 interactive)" in " ".join(lines)
    assert "5,678 recomputed" in " ".join(lines)


def test_jobs_have_a_bar_and_the_time_that_is_left() -> None:
    lines = render(FULL)
    job = find_row(lines, "batch_1")
    assert job[1] == "in_progress"
    assert 5 <= job[2].count("━") <= 24
    assert job[-6:] == ["100", "/", "400", "3", "77.7", "0:01:30"]
    assert find_row(lines, "batch_2")[-1] == "-"


def test_a_job_that_does_not_get_on_says_why() -> None:
    problem = "finishing batch batch_3 failed in the gateway; its log has the reason"
    job = JobProgress("batch_3", BatchStatus.FINALIZING, problem=problem)
    lines = render(replace(FULL, jobs=(*FULL.jobs, job)))
    assert lines[-1] == f"batch_3: {problem}"


def test_the_document_is_printed_as_it_is() -> None:
    console = make_console()
    with connect(Operations(FULL)) as client:
        show_status(client, console, as_json=True)
    assert json.loads(read(console)) == json.loads(json.dumps(FULL.to_document()))


def test_watching_shows_the_newest_and_outlives_a_gateway_that_goes() -> None:
    operations = Operations(EMPTY, FULL)
    console = Console(file=io.StringIO(), width=160, force_terminal=True)
    turns = []
    app = build_control_app(operations, None)  # type: ignore[arg-type]

    def sleep(seconds: float) -> None:
        assert seconds == status.EVERY_S
        turns.append(read(console))
        if len(turns) == 2:
            serving.__exit__(None, None, None)
        if len(turns) == 3:
            raise KeyboardInterrupt

    serving = serve(app)
    url = serving.__enter__()
    with ControlClient(url) as client, pytest.raises(KeyboardInterrupt):
        watch_status(client, console, sleep=sleep)
    assert "not ready" in turns[0]
    assert "batch_1" not in turns[0]
    assert "batch_1" in turns[1]
    assert "no gateway answers" in turns[2]


def test_errors_of_the_control_api_are_ours() -> None:
    with connect(Operations(EMPTY), "secret") as client:
        with pytest.raises(NotFound, match="no attention worker 'none'"):
            client.drain("none", 1.0)
        client.drain("a/b c", 7.0)
        client.cancel_drain("a/b c")
        url = client._url
        with ControlClient(url) as stranger, pytest.raises(Unauthenticated, match="secret"):
            stranger.inspect()
    with ControlClient(url) as late, pytest.raises(PeerUnavailable, match="--control"):
        late.inspect()


def test_another_server_is_not_taken_for_a_gateway() -> None:
    app = FastAPI()
    app.get("/v1/inspection")(lambda: {"hello": "world"})
    with (
        serve(app) as url,
        ControlClient(url) as client,
        pytest.raises(InvariantBroken, match="control API"),
    ):
        client.inspect()


def test_without_the_secret_no_body_is_read() -> None:
    app = build_control_app(Operations(EMPTY), "the secret")  # type: ignore[arg-type]
    with serve(app) as url:
        answer = httpx.put(f"{url}/v1/workers/w/drain", content=b"no json", timeout=60.0)
    assert answer.status_code == 401
    assert "shared secret" in answer.json()["error"]["message"]
