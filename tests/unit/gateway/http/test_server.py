"""The server around the application: its port, TLS, and how it ends."""

import json
import socket
import subprocess
import threading
from pathlib import Path

import httpx
import pytest

from glinthawk.errors import InvalidConfig
from glinthawk.gateway.http import reading
from glinthawk.gateway.http.server import HttpServer
from unit.gateway.http.serving import CHAT, LONG, WAIT_S, serve, wait_until


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("tls")
    certificate, key = folder / "cert.pem", folder / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
         "-nodes", "-days", "2", "-subj", "/CN=localhost", "-addext",
         "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)],
        check=True,
        capture_output=True,
    )  # fmt: skip
    return certificate, key


def test_tls_by_certificate_files(certificate: tuple[Path, Path], tmp_path: Path) -> None:
    with serve(tmp_path, certificate=certificate[0], key=certificate[1]) as served:
        assert served.url.startswith("https")
        assert served.http.get("/health").status_code == 200
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{served.url}/health")


def test_files_that_are_no_certificate_are_refused(
    certificate: tuple[Path, Path], tmp_path: Path
) -> None:
    with serve(tmp_path) as served:
        app = served.app
        for wrong in (tmp_path / "none.pem", certificate[1]):
            with pytest.raises(InvalidConfig, match=str(wrong)):
                HttpServer(app, "127.0.0.1", 0, certificate=wrong, key=certificate[1])


def test_a_port_in_use_is_refused_with_its_number(tmp_path: Path) -> None:
    with serve(tmp_path) as served, pytest.raises(InvalidConfig, match=str(served.server.port)):
        HttpServer(served.app, "127.0.0.1", served.server.port)


def test_stopping_lets_open_calls_end(tmp_path: Path) -> None:
    answers = []
    with serve(tmp_path) as served:
        served.tiers.pace_s = 0.05

        def ask() -> None:
            body = LONG | {"max_tokens": 10}
            answers.append(httpx.post(served.url + CHAT, json=body, timeout=WAIT_S))

        asker = threading.Thread(target=ask)
        asker.start()
        wait_until(lambda: not served.is_idle(), "the call runs")
        served.server.stop(WAIT_S)
        asker.join(WAIT_S)
        assert [answer.status_code for answer in answers] == [200]
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{served.url}/health")


def test_stopping_cuts_off_calls_that_do_not_end(tmp_path: Path) -> None:
    with serve(tmp_path) as served:
        served.tiers.script, served.tiers.pace_s = [*b"a"], 0.5
        with served.http.stream("POST", CHAT, json=LONG | {"stream": True}) as answer:
            lines = answer.iter_lines()
            next(lines)
            served.server.stop(1.0)  # by itself the call would run for more than two minutes
            with pytest.raises(httpx.RemoteProtocolError):
                list(lines)
        wait_until(served.is_idle, "the call that was cut off is given up")


def test_a_server_that_never_started_can_be_stopped(tmp_path: Path) -> None:
    with serve(tmp_path) as served:
        other = HttpServer(served.app, "127.0.0.1", 0)
        other.stop(1.0)
        again = HttpServer(served.app, "127.0.0.1", other.port)
        again.stop(1.0)


@pytest.mark.parametrize(
    "sent",
    [
        b"GARBAGE\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: -5\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        b"transfer-encoding: chunked\r\n\r\nZZ\r\n",
    ],
)
def test_bytes_that_are_no_http_get_an_error_of_the_same_shape(tmp_path: Path, sent: bytes) -> None:
    with serve(tmp_path) as served, socket.create_connection(served.address, WAIT_S) as connection:
        connection.sendall(sent)
        head, _, body = b"".join(iter(lambda: connection.recv(4096), b"")).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert b"content-type: application/json" in head
    error = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"


def test_a_malformed_head_ends_its_connection_and_no_other(tmp_path: Path) -> None:
    sent = b"HEAD /v1/models HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nZZ\r\n"
    with serve(tmp_path) as served:
        with socket.create_connection(served.address, WAIT_S) as connection:
            connection.sendall(sent)
            answer = b"".join(iter(lambda: connection.recv(4096), b""))
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert answer.endswith(b"\r\n\r\n")  # an answer to HEAD has no body
        assert httpx.get(f"{served.url}/health").status_code == 200


def test_a_body_that_stops_coming_gives_its_place_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "MOST_SILENCE_S", 0.3)
    head = (
        b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        b"content-length: 10\r\n\r\n{"
    )
    with serve(tmp_path) as served, socket.create_connection(served.address, WAIT_S) as connection:
        connection.sendall(head)
        answer = connection.recv(65536)
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b"request_timeout" in answer
