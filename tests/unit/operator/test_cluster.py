"""Calls of the API server over a real socket: faults are tried again, or become our errors."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from kubernetes import client

from glinthawk_operator.cluster import Cluster
from glinthawk_operator.errors import (
    ApiConflict,
    ApiError,
    ApiForbidden,
    ApiInvalid,
    ApiNotFound,
    ApiUnavailable,
)

POD = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "ns"}}


class Server:
    """Answers what it was told to, one after the other, and keeps what it was asked."""

    def __init__(self) -> None:
        self.answers: list[tuple[int, dict[str, str], Any]] = []
        self.asked: list[tuple[str, str, str, Any]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_any(self) -> None:
                length = int(self.headers.get("Content-Length", "0"))
                body = self.rfile.read(length)
                kind = self.headers.get("Content-Type", "")
                outer.asked.append(
                    (self.command, self.path, kind, json.loads(body) if body else None)
                )
                code, headers, document = (
                    outer.answers.pop(0) if outer.answers else (200, {}, {"metadata": {}})
                )
                if code == 0:
                    self.connection.close()  # as a server that dies
                    return
                content = json.dumps(document).encode()
                self.send_response(code)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_any

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def fail(self, code: int, **headers: str) -> None:
        message = {"kind": "Status", "message": f"because of {code}", "code": code}
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        self.answers.append((code, names, message))

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


class Pauses:
    """A clock that only moves when someone sleeps."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.slept: list[float] = []

    def clock(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now_s += seconds


@pytest.fixture
def pauses() -> Pauses:
    return Pauses()


@pytest.fixture
def cluster(server: Server, pauses: Pauses) -> Cluster:
    configuration = client.Configuration()
    configuration.host = server.url
    configuration.retries = False
    return Cluster(
        client.ApiClient(configuration), clock=pauses.clock, sleep=pauses.sleep, deadline_s=10.0
    )


def test_apply_is_server_side_with_our_manager(server: Server, cluster: Cluster) -> None:
    cluster.apply(POD)
    ((verb, path, kind, body),) = server.asked
    assert verb == "PATCH"
    assert path.startswith("/api/v1/namespaces/ns/pods/p?")
    assert "fieldManager=glinthawk-operator" in path
    assert "force=true" in path.lower()
    assert kind == "application/apply-patch+yaml"
    assert body == POD


def test_nothing_is_asked_before_the_first_call(server: Server, cluster: Cluster) -> None:
    assert server.asked == []


def test_delete_names_the_uid(server: Server, cluster: Cluster) -> None:
    cluster.delete("Pod", "p", "ns", uid="u1", grace_s=0)
    ((verb, _, _, body),) = server.asked
    assert verb == "DELETE"
    assert body["preconditions"] == {"uid": "u1"}
    assert body["gracePeriodSeconds"] == 0


def test_deleting_what_is_gone_is_done(server: Server, cluster: Cluster) -> None:
    server.fail(404)
    cluster.delete("Pod", "p", "ns", uid="u1")


def test_scale_and_status_go_to_their_subresources(server: Server, cluster: Cluster) -> None:
    cluster.scale("Deployment", "d", "ns", 3)
    cluster.patch_status("demo", "ns", {"endpoint": None})
    scale, status = server.asked
    assert scale[1].startswith("/apis/apps/v1/namespaces/ns/deployments/d/scale")
    assert scale[3] == {"spec": {"replicas": 3}}
    assert status[1].startswith(
        "/apis/glinthawk.dev/v1alpha1/namespaces/ns/glinthawkdeployments/demo/status"
    )
    assert status[3] == {"status": {"endpoint": None}}


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (400, ApiInvalid),
        (401, ApiForbidden),
        (403, ApiForbidden),
        (404, ApiNotFound),
        (409, ApiConflict),
        (418, ApiError),
        (422, ApiInvalid),
    ],
)
def test_what_will_not_get_better_is_not_tried_again(
    server: Server, cluster: Cluster, code: int, kind: type[ApiError]
) -> None:
    server.fail(code)
    with pytest.raises(kind, match=f"because of {code}") as raised:
        cluster.apply(POD)
    assert type(raised.value) is kind
    assert raised.value.status == code
    assert len(server.asked) == 1


@pytest.mark.parametrize("code", [0, 429, 500, 503, 504])
def test_what_may_get_better_is_tried_again(server: Server, cluster: Cluster, code: int) -> None:
    server.fail(code)
    server.fail(code)
    assert cluster.apply(POD) == {"metadata": {}}
    assert len(server.asked) == 3


def test_waits_as_long_as_the_server_asks(server: Server, cluster: Cluster, pauses: Pauses) -> None:
    server.fail(429, Retry_After="2")
    cluster.get("Pod", "p", "ns")
    assert pauses.slept == [2.0]


def test_a_long_wait_is_left_to_the_queue(server: Server, cluster: Cluster, pauses: Pauses) -> None:
    server.fail(429, Retry_After="30")
    with pytest.raises(ApiUnavailable) as raised:
        cluster.get("Pod", "p", "ns")
    assert raised.value.retry_after_s == 30.0
    assert pauses.slept == []


def test_gives_up_when_its_time_is_over(server: Server, cluster: Cluster, pauses: Pauses) -> None:
    for _ in range(50):
        server.fail(500)
    with pytest.raises(ApiUnavailable):
        cluster.get("Pod", "p", "ns")
    assert pauses.now_s <= 10.0


def test_a_server_that_is_not_there_is_unavailable(pauses: Pauses) -> None:
    configuration = client.Configuration()
    configuration.host = "http://127.0.0.1:1"
    configuration.retries = False
    cluster = Cluster(client.ApiClient(configuration), clock=pauses.clock, sleep=pauses.sleep)
    with pytest.raises(ApiUnavailable, match="does not answer"):
        cluster.get("Pod", "p", "ns")


def test_a_kind_that_is_absent_is_known_to_be(server: Server, cluster: Cluster) -> None:
    server.fail(404)
    assert not cluster.knows("ServiceMonitor")
    server.answers.append((200, {}, {"resources": [{"kind": "ServiceMonitor"}]}))
    assert cluster.knows("ServiceMonitor")


def test_every_request_is_told(server: Server) -> None:
    told: list[tuple[str, str, str]] = []
    configuration = client.Configuration()
    configuration.host = server.url
    configuration.retries = False
    cluster = Cluster(
        client.ApiClient(configuration),
        observe=lambda *request: told.append(request),
        sleep=lambda _: None,
    )
    server.fail(503)
    cluster.get("Pod", "p", "ns")
    assert told == [("get", "Pod", "503"), ("get", "Pod", "200")]
