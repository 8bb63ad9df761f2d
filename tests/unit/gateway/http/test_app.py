"""The odd cases, over a real socket: what no well-meaning client sends, and clients that go."""

import io
import json
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from structlog.testing import capture_logs

from glinthawk.errors import PeerUnavailable
from glinthawk.gateway.api.services import ApiLimits
from glinthawk.gateway.store.records import BatchStatus, FilePurpose
from glinthawk.telemetry.logging import configure_logging
from unit.gateway.http.serving import BODY, CHAT, LONG, WAIT_S, Served, serve, wait_until


def check_error(answer: httpx.Response, status: int) -> dict[str, Any]:
    """Return the error of an answer that must have OpenAI's shape."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    (error,) = answer.json().values()
    assert set(error) == {"message", "type", "param", "code"}
    return dict(error)


# --- bodies


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b'{"model": "tiny", "temperature": NaN}',
        b'{"model": "tiny", "temperature": Infinity}',
        b'{"model": "tiny", "n": ' + b"9" * 5000 + b"}",
        b'{"model": "tiny", "n": 1e999}',
        b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
        b"[" * 60_000,
        b'{"model": "\\ud800"}',
        b'{"model": "tiny", "\\ud800": 1}',
        b'{"model": "tiny", "messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"model": "tiny", "messages": 5, "stream": true}',
        b'{"model": 5}',
    ],
    ids=lambda body: repr(body[:30]),
)
@pytest.mark.parametrize("path", [CHAT, "/v1/completions", "/v1/batches"])
def test_a_body_that_makes_no_sense_is_a_400(served: Served, path: str, body: bytes) -> None:
    headers = {"content-type": "application/json"}
    check_error(served.http.post(path, content=body, headers=headers), 400)


def test_a_body_of_another_kind_is_refused(served: Served) -> None:
    for headers in ({"content-type": "text/plain"}, {}):
        answer = served.http.post(CHAT, content=json.dumps(BODY).encode(), headers=headers)
        assert check_error(answer, 415)["code"] == "unsupported_media_type"


def test_a_body_over_the_bound_is_refused_before_it_is_read(served: Served) -> None:
    """The length alone is enough: not one byte of the body is sent."""
    with socket.create_connection(served.address, WAIT_S) as connection:
        connection.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Content-Length: 99999999999999999999\r\n\r\n"
        )
        assert connection.recv(4096).startswith(b"HTTP/1.1 413 ")


def test_a_body_without_a_length_is_refused_while_it_arrives(served: Served) -> None:
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        while sent < 100 << 20:
            sent += 1 << 16
            yield b" " * (1 << 16)

    headers = {"content-type": "application/json"}
    answer = served.http.post(CHAT, content=endless(), headers=headers)
    assert check_error(answer, 413)["code"] == "request_too_large"


# --- routes


@pytest.mark.parametrize("path", ["/", "/v1", "/v1/none", "/v1/files/", "/docs", "/v1/chat"])
def test_a_path_that_is_not_there_is_a_404(served: Served, path: str) -> None:
    assert check_error(served.http.get(path), 404)["code"] == "unknown_url"


def test_a_method_that_is_not_there_is_a_405_that_says_which_are(served: Served) -> None:
    answer = served.http.put("/v1/files")
    assert "use GET, POST" in check_error(answer, 405)["message"]
    assert answer.headers["allow"] == "GET, POST"
    answer = served.http.get(CHAT)
    assert "use POST" in check_error(answer, 405)["message"]
    assert answer.headers["allow"] == "POST"


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("limit=0", "limit"),
        ("limit=x", "limit"),
        ("limit=" + "9" * 5000, "limit"),
        ("order=up", "order"),
    ],
)
def test_a_wrong_parameter_is_a_400_that_names_it(served: Served, query: str, param: str) -> None:
    assert check_error(served.http.get(f"/v1/files?{query}"), 400)["param"] == param


@pytest.mark.parametrize("path", ["/v1/files", "/v1/batches"])
def test_a_page_behind_something_unknown_is_a_404(served: Served, path: str) -> None:
    check_error(served.http.get(f"{path}?after=none"), 404)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/files/%00"),
        ("GET", "/v1/files/%ff%fe/content"),
        ("DELETE", "/v1/files/..%2F..%2Fetc"),
        ("GET", "/v1/batches/" + "x" * 3000),
        ("POST", "/v1/batches/none/cancel"),
        ("GET", "/v1/models/..%2Ftiny"),
    ],
)
def test_strange_ids_are_not_found(served: Served, method: str, path: str) -> None:
    assert len(check_error(served.http.request(method, path), 404)["message"]) < 200


def test_a_field_of_a_name_without_end_is_refused_in_few_words(served: Served) -> None:
    error = check_error(served.http.post(CHAT, json=BODY | {"x" * 10_000: 1}), 400)
    assert len(error["message"]) < 200
    assert len(error["param"]) == 200


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (BODY | {"max_tokens": True}, "max_tokens must be an integer, not true"),
        (BODY | {"messages": [{"role": "user"}]}, "content must be a string, not null"),
        (BODY | {"stop": 5}, "stop must be a string or a list of strings, not 5"),
        (None, "the body must be a JSON object, not null"),
        ([1], "the body must be a JSON object, not an array"),
    ],
)
def test_values_are_shown_in_the_words_of_json(served: Served, body: Any, message: str) -> None:
    content = json.dumps(body).encode()
    answer = served.http.post(CHAT, content=content, headers={"content-type": "application/json"})
    assert message in check_error(answer, 400)["message"]


@pytest.mark.parametrize(
    ("metadata", "param", "message"),
    [
        ({str(n): "x" for n in range(17)}, "metadata", "has 17 pairs; at most 16"),
        ({"k" * 65: "x"}, "metadata", "has 65 characters; at most 64"),
        ({"k": "x" * 513}, "metadata.k", "has 513 characters; at most 512"),
        ({"k": 5}, "metadata.k", "metadata.k must be a string, not 5"),
        ([], "metadata", "metadata must be an object, not []"),
    ],
)
def test_metadata_over_a_limit_are_refused_with_value_and_limit(
    served: Served, metadata: Any, param: str, message: str
) -> None:
    body = {"input_file_id": "f", "endpoint": CHAT, "completion_window": "24h"}
    error = check_error(served.http.post("/v1/batches", json=body | {"metadata": metadata}), 400)
    assert error["param"] == param
    assert message in error["message"]


def test_a_batch_that_is_over_cannot_be_cancelled(served: Served) -> None:
    form = {"purpose": "batch"}
    upload = served.http.post("/v1/files", data=form, files={"file": ("in.jsonl", b"{}")})
    body = {"input_file_id": upload.json()["id"], "endpoint": CHAT, "completion_window": "24h"}
    batch = served.http.post("/v1/batches", json=body).json()
    served.store.update_batch(
        batch["id"], only_from=(BatchStatus.VALIDATING,), status=BatchStatus.COMPLETED
    )
    answer = served.http.post(f"/v1/batches/{batch['id']}/cancel")
    assert check_error(answer, 409)["code"] == "batch_not_cancellable"
    assert answer.headers["x-should-retry"] == "false"


def test_a_batch_of_a_key_is_found_again_after_its_input_was_deleted(served: Served) -> None:
    form = {"purpose": "batch"}
    upload = served.http.post("/v1/files", data=form, files={"file": ("in.jsonl", b"{}")})
    file = upload.json()["id"]
    body = {"input_file_id": file, "endpoint": CHAT, "completion_window": "24h"}
    headers = {"idempotency-key": "mark"}
    batch = served.http.post("/v1/batches", json=body, headers=headers).json()
    served.store.update_batch(
        batch["id"], only_from=(BatchStatus.VALIDATING,), status=BatchStatus.COMPLETED
    )
    assert served.http.delete(f"/v1/files/{file}").status_code == 200
    again = served.http.post("/v1/batches", json=body, headers=headers)
    assert (again.status_code, again.json()["id"]) == (200, batch["id"])
    check_error(served.http.post("/v1/batches", json=body), 400)


# --- probes


def test_probes_and_figures(served: Served) -> None:
    assert served.http.get("/health").json() == {"status": "ok"}
    assert served.http.get("/ready").json() == {"status": "ready"}
    served.http.post(CHAT, json=BODY)
    figures = served.http.get("/metrics")
    assert figures.headers["content-type"].startswith("text/plain")
    assert "glinthawk_tokens_out_total" in figures.text
    assert served.http.get("/openapi.json").json()["openapi"].startswith("3.")


def test_a_gateway_whose_engine_ended_is_alive_and_not_ready(tmp_path: Path) -> None:
    with serve(tmp_path) as served:
        served.engine.break_down(PeerUnavailable("worker w went away"))
        wait_until(lambda: served.engine.failure is not None, "the engine ends")
        assert served.http.get("/health").status_code == 200
        with capture_logs() as logs:
            answer = served.http.get("/ready")
        assert "stages or attention workers" in check_error(answer, 503)["message"]
        assert not logs  # a probe asks every few seconds
        assert answer.headers["retry-after"]
        check_error(served.http.post(CHAT, json=BODY), 503)


# --- keys and limits


def test_a_key_is_asked_for_where_something_is_to_protect(tmp_path: Path) -> None:
    with serve(tmp_path, keys={"k": "alice"}) as served:
        for path in ("/health", "/ready", "/metrics", "/openapi.json"):
            assert served.http.get(path).status_code == 200
        for headers in ({}, {"authorization": "Bearer no"}, {"authorization": "Basic k"}):
            for method, path in [("GET", "/v1/models"), ("POST", CHAT), ("POST", "/v1/files")]:
                answer = served.http.request(method, path, headers=headers)
                assert check_error(answer, 401)["code"] == "invalid_api_key"
                assert answer.headers["www-authenticate"] == "Bearer"
        good = {"authorization": "Bearer k"}
        assert served.http.get("/v1/models", headers=good).status_code == 200
        form = {"file": ("a.jsonl", b"{}")}
        answer = served.http.post("/v1/files", files=form, data={"purpose": "batch"}, headers=good)
        assert served.store.get_file(answer.json()["id"]).owner == "alice"


def test_one_batch_more_than_a_key_may_have_open_is_a_429_that_names_the_limit(
    tmp_path: Path,
) -> None:
    limits = ApiLimits(1 << 20, 1 << 20, 9, 1000, max_key_batches=1)
    with serve(tmp_path, limits=limits) as served:
        form = {"file": ("a.jsonl", b"{}")}
        file = served.http.post("/v1/files", files=form, data={"purpose": "batch"}).json()["id"]
        body = {"input_file_id": file, "endpoint": CHAT, "completion_window": "24h"}
        made = served.http.post("/v1/batches", json=body).json()["id"]
        answer = served.http.post("/v1/batches", json=body)
        error = check_error(answer, 429)
        assert error["code"] == "rate_limit_exceeded"
        assert "max_key_batches" in error["message"]
        assert int(answer.headers["retry-after"]) >= 1
        served.store.update_batch(made, only_from=list(BatchStatus), status=BatchStatus.CANCELLED)
        assert served.http.post("/v1/batches", json=body).status_code == 200


def test_a_request_is_open_from_its_first_byte_on(tmp_path: Path) -> None:
    limits = ApiLimits(1 << 20, 1 << 20, max_key_requests=1, max_key_tokens=1000, max_key_batches=9)
    content = json.dumps(BODY | {"max_tokens": 2}).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json"
    head += f"\r\ncontent-length: {len(content)}\r\n\r\n"
    with serve(tmp_path, limits=limits) as served:
        with socket.create_connection(served.address, WAIT_S) as connection:
            connection.sendall(head.encode() + content[:10])
            wait_until(
                lambda: served.http.post(CHAT, json=BODY).status_code == 429, "it counts as open"
            )
            connection.sendall(content[10:])
            assert connection.recv(100).startswith(b"HTTP/1.1 200 ")
        wait_until(lambda: served.http.post(CHAT, json=BODY).status_code == 200, "it is over")


def test_more_than_a_key_may_have_open_is_a_429_that_says_when(tmp_path: Path) -> None:
    limits = ApiLimits(1 << 20, 1 << 20, max_key_requests=1, max_key_tokens=1000, max_key_batches=9)
    keys = {"a": "alice", "b": "bob"}
    alice, bob = ({"authorization": f"Bearer {key}"} for key in "ab")
    with serve(tmp_path, keys=keys, limits=limits) as served:
        served.tiers.script, served.tiers.pace_s = [*b"a"], 0.2
        stream = LONG | {"stream": True}
        with served.http.stream("POST", CHAT, json=stream, headers=alice) as open_one:
            lines = open_one.iter_lines()
            next(lines)
            answer = served.http.post(CHAT, json=BODY, headers=alice)
            assert check_error(answer, 429)["code"] == "rate_limit_exceeded"
            assert int(answer.headers["retry-after"]) >= 1
            short = BODY | {"max_tokens": 1}
            assert served.http.post(CHAT, json=short, headers=bob).status_code == 200
            assert next(lines) == ""  # the stream is still open, and left only now
        wait_until(served.is_idle, "the stream that was left is given up")
        short = BODY | {"max_tokens": 1}
        assert served.http.post(CHAT, json=short, headers=alice).status_code == 200
        many = BODY | {"n": 100, "max_tokens": 100}
        assert check_error(served.http.post(CHAT, json=many, headers=alice), 400)["param"]


# --- streams that are quiet


def test_comments_keep_a_quiet_stream_alive(tmp_path: Path) -> None:
    with serve(tmp_path, comment_every_s=0.02) as served:
        served.tiers.script = [*b"ab"]
        served.tiers.go.clear()
        body = BODY | {"stream": True, "max_tokens": 2}
        with served.http.stream("POST", CHAT, json=body) as answer:
            lines = answer.iter_lines()
            assert next(lines) == ": waiting"
            served.tiers.go.set()
            events = [line for line in lines if line]
        assert events[-1] == "data: [DONE]"
        chunks = [json.loads(one[6:]) for one in events[:-1] if one.startswith("data: ")]
        deltas = [chunk["choices"][0]["delta"].get("content", "") for chunk in chunks]
        assert "".join(deltas) == "ab"


# --- clients that go


def send_request(served: Served, body: dict[str, Any]) -> socket.socket:
    content = json.dumps(body).encode()
    connection = socket.create_connection(served.address, WAIT_S)
    head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    connection.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
    return connection


def hang_up(connection: socket.socket, *, abruptly: bool) -> None:
    if abruptly:  # a reset, as of a client that was killed
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


@pytest.mark.parametrize("abruptly", [False, True])
@pytest.mark.parametrize("is_streamed", [False, True])
def test_a_client_that_hangs_up_stops_its_generation(
    served: Served, is_streamed: bool, abruptly: bool
) -> None:
    served.tiers.script, served.tiers.pace_s = [*b"a"], 0.2  # 300 tokens would take a minute
    connection = send_request(served, LONG | {"stream": is_streamed, "n": 3})
    if is_streamed:
        assert connection.recv(64).startswith(b"HTTP/1.1 200")
    wait_until(lambda: not served.is_idle(), "the request runs")
    before = served.engine.stats.tokens_out
    hang_up(connection, abruptly=abruptly)
    wait_until(served.is_idle, "the request is given up")
    wait_until(lambda: served.engine.stats.scheduler.kv_used_bytes == 0, "its KV is freed")
    assert served.engine.stats.tokens_out - before < 3 * 150
    served.scheduler.check_integrity()


def test_other_requests_go_on_when_one_client_goes(served: Served) -> None:
    served.tiers.pace_s = 0.01
    answers = []

    def ask() -> None:
        answers.append(httpx.post(served.url + CHAT, json=BODY, timeout=WAIT_S).json())

    askers = [threading.Thread(target=ask) for _ in range(5)]
    gone = send_request(served, BODY | {"stream": True})
    for asker in askers:
        asker.start()
    hang_up(gone, abruptly=True)
    for asker in askers:
        asker.join(WAIT_S)
    texts = [answer["choices"][0]["message"]["content"] for answer in answers]
    assert texts == ["hello world"] * 5


def test_an_upload_that_is_broken_off_leaves_nothing(served: Served) -> None:
    before = list(served.store.list_files(limit=100))
    connection = socket.create_connection(served.address, WAIT_S)
    connection.sendall(
        b"POST /v1/files HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n"
        b"Content-Type: multipart/form-data; boundary=b\r\n\r\n"
        b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n' + b"x" * 20000
    )
    wait_until(lambda: any(one.name.startswith("upload") for one in threading.enumerate()), "begin")
    hang_up(connection, abruptly=True)
    wait_until(
        lambda: not any(one.name.startswith("upload") for one in threading.enumerate()), "end"
    )
    assert list(served.store.list_files(limit=100)) == before


def test_a_download_is_whole_though_larger_than_any_buffer(served: Served) -> None:
    piece = bytes(range(256)) * 4096
    file = served.store.add_file([piece] * 12, purpose=FilePurpose.BATCH_OUTPUT, filename="o")
    with served.http.stream("GET", f"/v1/files/{file.id}/content") as answer:
        assert int(answer.headers["content-length"]) == 12 * len(piece)
        assert b"".join(answer.iter_bytes()) == piece * 12


def test_a_file_is_never_held_whole(tmp_path: Path) -> None:
    process, piece, num_pieces = psutil.Process(), b"x" * (1 << 20), 128
    sizes = []

    def form() -> Iterator[bytes]:
        yield b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
        yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
        for _ in range(num_pieces):
            yield piece
            sizes.append(process.memory_info().rss)
        yield b"\r\n--b--\r\n"

    limits = ApiLimits(1 << 20, 1 << 30, max_key_requests=9, max_key_tokens=1000, max_key_batches=9)
    with serve(tmp_path, limits=limits) as served:
        headers = {"content-type": "multipart/form-data; boundary=b"}
        file = served.http.post("/v1/files", content=form(), headers=headers).json()
        assert file["bytes"] == num_pieces * len(piece)
        with served.http.stream("GET", f"/v1/files/{file['id']}/content") as answer:
            num_bytes = 0
            for part in answer.iter_raw():
                num_bytes += len(part)
                sizes.append(process.memory_info().rss)
    assert num_bytes == file["bytes"]
    assert max(sizes) - sizes[0] < 32 << 20


def test_a_client_that_leaves_a_download_closes_the_file(served: Served) -> None:
    file = served.store.add_file([b"x" * (8 << 20)], purpose=FilePurpose.BATCH_OUTPUT, filename="o")
    with served.http.stream("GET", f"/v1/files/{file.id}/content") as answer:
        pieces = answer.iter_raw(1000)
        next(pieces)
    served.store.delete_file(file.id)
    check_error(served.http.get(f"/v1/files/{file.id}/content"), 404)


# --- what is not said


def test_no_prompt_is_logged(served: Served, capfd: pytest.CaptureFixture[str]) -> None:
    log = io.StringIO()
    configure_logging("debug", "json", role="gateway", name="g", stream=log)
    secret = "the-secret-prompt"
    body = BODY | {"messages": [{"role": "user", "content": secret}]}
    assert served.http.post(CHAT, json=body).status_code == 200
    check_error(served.http.post(CHAT, json=body | {"temperature": 9}), 400)
    check_error(served.http.post(CHAT, content=secret.encode()), 415)
    served.http.get(f"/{secret}?q={secret}")
    served.tiers.fail_at = 0
    check_error(served.http.post(CHAT, json=body), 500)
    written = capfd.readouterr()
    assert secret not in log.getvalue() + written.out + written.err
