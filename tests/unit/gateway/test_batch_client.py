"""The client of a gateway's files and batches, over real sockets."""

import json
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from glinthawk.errors import InvalidRequest, NotFound, PeerUnavailable, Unauthenticated
from glinthawk.gateway import batch_client
from glinthawk.gateway.batch_client import MARK, BatchClient
from unit.gateway.http.serving import Served, serve

Answer = tuple[int, dict[str, str], bytes]


class Script:
    """A server that gives its answers in turn, the last one for ever; None breaks off."""

    def __init__(self, *answers: Answer | None) -> None:
        self._answers = list(answers)
        self.calls: list[str] = []

    def next(self) -> Answer | None:
        return self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]


@contextmanager
def play(script: Script) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            script.calls.append(f"{self.command} {self.path}")
            self.rfile.read(int(self.headers.get("content-length", "0")))
            answer = script.next()
            if answer is None:
                self.close_connection = True
                return
            status, headers, body = answer
            self.send_response(status)
            for name, value in {"content-length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = answer

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Time:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.pauses: list[float] = []

    def clock(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now_s += seconds


@contextmanager
def connect(url: str, time: Time, patience_s: float = 60.0) -> Iterator[BatchClient]:
    with BatchClient(
        url, api_key=None, patience_s=patience_s, clock=time.clock, sleep=time.sleep
    ) as client:
        yield client


def say(status: int, document: dict[str, Any], **headers: str) -> Answer:
    return status, headers, json.dumps(document).encode()


def refuse(status: int, message: str, **headers: str) -> Answer:
    return say(status, {"error": {"message": message}}, **headers)


def test_a_full_gateway_is_asked_again_when_it_says() -> None:
    time = Time()
    full = (429, {"Retry-After": "7"}, b"{}")
    script = Script(full, (503, {"Retry-After": "0"}, b"no JSON"), say(200, {"id": "b"}))
    with play(script) as url, connect(url, time) as client:
        assert client.get_batch("b") == {"id": "b"}
    assert time.pauses == [7.0, 1.0]
    assert script.calls == ["GET /v1/batches/b"] * 3


def test_a_broken_connection_is_tried_again_with_growing_pauses() -> None:
    time = Time()
    with play(Script(None, None, None, say(200, {}))) as url, connect(url, time) as client:
        client.get_batch("b")
    assert time.pauses == [0.5, 1.0, 2.0]


def test_patience_ends_with_the_reason() -> None:
    time = Time()
    with (
        play(Script(refuse(503, "no stages"))) as url,
        connect(url, time, patience_s=20.0) as client,
        pytest.raises(PeerUnavailable, match="no stages"),
    ):
        client.get_batch("b")
    assert 10.0 < sum(time.pauses) <= 20.0


def test_nobody_at_the_address_is_said() -> None:
    with play(Script(say(200, {}))) as url:
        pass
    with connect(url, Time()) as client, pytest.raises(PeerUnavailable, match=url):
        client.get_batch("b")


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, InvalidRequest), (401, Unauthenticated), (404, NotFound), (413, InvalidRequest)],
)
def test_what_is_final_is_not_tried_again(status: int, kind: type[Exception]) -> None:
    script = Script(refuse(status, "because"))
    with (
        play(script) as url,
        connect(url, Time()) as client,
        pytest.raises(kind, match="because"),
    ):
        client.get_batch("b")
    assert len(script.calls) == 1


def test_a_batch_whose_creation_broke_off_is_found_and_not_made_twice() -> None:
    page = {"data": [{"id": "other", "metadata": None}, {"id": "b", "metadata": {MARK: "m"}}]}
    script = Script(None, say(200, page | {"has_more": False}))
    with play(script) as url, connect(url, Time()) as client:
        assert client.create_batch({}, "m")["id"] == "b"
    assert script.calls == ["POST /v1/batches", "GET /v1/batches?limit=100"]


def test_an_upload_that_broke_off_is_sent_whole_again(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"x" * 100_000)
    script = Script(None, say(200, {"id": "file-1"}))
    with play(script) as url, connect(url, Time()) as client:
        assert client.upload(path) == "file-1"
    assert script.calls == ["POST /v1/files"] * 2


def test_a_file_that_breaks_off_is_not_taken_for_whole() -> None:
    torn = (200, {"content-length": "100"}, b"half")
    with (
        play(Script(torn)) as url,
        connect(url, Time()) as client,
        pytest.raises(PeerUnavailable, match="broke off"),
        client.open_file("f") as pieces,
    ):
        list(pieces)


# --- against the HTTP API itself


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    with serve(tmp_path / "data", keys={"key": "me"}) as served:
        yield served


def test_a_creation_that_the_client_gave_up_and_the_gateway_did_not_makes_one_batch(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store is locked: the call waits there for longer than the client has patience."""
    monkeypatch.setattr(batch_client, "_TIMEOUT", httpx.Timeout(1.0))
    path = tmp_path / "in.jsonl"
    path.write_bytes(b'{"custom_id": "a"}\n')
    other = sqlite3.connect(
        tmp_path / "data" / "glinthawk.db", isolation_level=None, check_same_thread=False
    )

    def sleep(seconds: float) -> None:
        if unlock.ident is None:
            unlock.start()
        time.sleep(seconds)

    unlock = threading.Timer(2.0, other.execute, ("ROLLBACK",))
    with BatchClient(served.url, api_key="key", patience_s=60.0, sleep=sleep) as client:
        fields = {
            "endpoint": "/v1/completions",
            "completion_window": "24h",
            "input_file_id": client.upload(path),
        }
        other.execute("BEGIN IMMEDIATE")
        made = client.create_batch(fields, "mark")
        unlock.join()
        other.close()
        assert client.create_batch(fields, "mark") == made
    time.sleep(1.0)
    assert [batch.id for batch in served.store.list_batches(limit=9)] == [made["id"]]
    answer = served.http.post(
        "/v1/batches",
        json=fields | {"priority": 5},
        headers={"authorization": "Bearer key", "idempotency-key": "mark"},
    )
    assert answer.status_code == 400
    assert made["id"] in answer.json()["error"]["message"]
    answer = served.http.post(
        "/v1/batches",
        json=fields,
        headers={"authorization": "Bearer key", "idempotency-key": "k" * 256},
    )
    assert answer.status_code == 400


def test_files_and_batches_of_a_gateway(served: Served, tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(b'{"custom_id": "a"}\n' * 9000)
    fields: dict[str, Any] = {"endpoint": "/v1/completions", "completion_window": "24h"}
    with BatchClient(served.url, api_key="key", patience_s=1.0) as client:
        file_id = client.upload(path)
        with client.open_file(file_id) as pieces:
            assert b"".join(pieces) == path.read_bytes()
        made = client.create_batch(fields | {"input_file_id": file_id}, "mark")
        for index in range(120):
            client.create_batch(fields | {"input_file_id": file_id}, f"other-{index}")
        assert client.find_batch("mark") == client.get_batch(made["id"]) == made
        assert client.find_batch("no such mark") is None
    call: Callable[[], Any]
    with BatchClient(served.url, api_key="wrong", patience_s=1.0) as client:
        for call in (lambda: client.upload(path), lambda: client.find_batch("mark")):
            with pytest.raises(Unauthenticated, match="--api-key-file"):
                call()
