"""The control API: the real one of the services, and answers that are none."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from glinthawk.gateway.control import build_control_app
from glinthawk.gateway.http.server import HttpServer
from glinthawk.gateway.inspection import Inspection as ServiceInspection
from glinthawk.gateway.inspection import KvFigures, StageView, WorkerView
from glinthawk_operator.errors import GatewayAway, GatewayRefused
from glinthawk_operator.gateway_client import GatewayClient, read_inspection

DOCUMENT = ServiceInspection(
    version="1.2",
    protocol_version=7,
    model="m",
    is_ready=True,
    num_stages=2,
    stages=(StageView("s0", "a:1", 0, 5, 0.75), StageView("s1", "a:2", 5, 10, None)),
    workers=(WorkerView("w/0", "a:3", "draining", 4, 100, 200, 0.5),),
    kv=KvFigures(100, 150, 200),
    tokens_out_per_s=12.5,
)


class Operations:
    """What the control API asks of the gateway."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def inspect(self) -> dict[str, Any]:
        return DOCUMENT.to_document()

    def drain(self, worker: str, deadline_s: float) -> None:
        self.calls.append(("drain", worker, deadline_s))

    def cancel_drain(self, worker: str) -> None:
        self.calls.append(("cancel", worker))


@pytest.fixture
def gateway() -> Iterator[tuple[str, Operations]]:
    operations = Operations()
    app = build_control_app(operations, "secret")  # type: ignore[arg-type]
    server = HttpServer(app, "127.0.0.1", 0, option="--control-port")
    server.start()
    yield f"http://127.0.0.1:{server.port}", operations
    server.stop(1.0)


def test_reads_what_the_services_say(gateway: tuple[str, Operations]) -> None:
    inspection = GatewayClient(gateway[0], secret="secret").inspect()
    assert inspection.is_ready
    assert inspection.protocol_version == 7
    assert inspection.num_registered_stages == 2
    assert inspection.stage_busy_shares == (0.75,)
    assert (inspection.kv_used_bytes, inspection.kv_demanded_bytes) == (100, 150)
    assert inspection.kv_capacity_bytes == 200
    assert inspection.tokens_per_second == 12.5
    worker = inspection.worker("w/0")
    assert worker is not None
    assert (worker.state, worker.kv_used_bytes, worker.busy_share) == ("draining", 100, 0.5)
    assert inspection.worker("other") is None


def test_drains_and_takes_it_back(gateway: tuple[str, Operations]) -> None:
    url, operations = gateway
    client = GatewayClient(url, secret="secret")
    client.drain("w/0", 30.0)
    client.cancel_drain("w/0")
    assert operations.calls == [("drain", "w/0", 30.0), ("cancel", "w/0")]


def test_a_wrong_secret_is_refused(gateway: tuple[str, Operations]) -> None:
    with pytest.raises(GatewayRefused, match="401") as raised:
        GatewayClient(gateway[0], secret="wrong").inspect()
    assert raised.value.status == 401


def test_nobody_there_is_away() -> None:
    with pytest.raises(GatewayAway, match="no gateway answers"):
        GatewayClient("http://127.0.0.1:1", secret=None).inspect()


@pytest.mark.parametrize(
    "answer", [b"not json", b"[]", b"{}", b'{"is_ready": true, "workers": [{}]}']
)
def test_an_answer_of_something_else_is_refused(answer: bytes) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            with pytest.raises(GatewayRefused):
                GatewayClient(f"http://127.0.0.1:{server.server_address[1]}", secret=None).inspect()
        finally:
            server.shutdown()
            thread.join()


def test_figures_mean_nothing_before_the_tiers_were_whole() -> None:
    assert not read_inspection({"is_ready": False}).has_figures
    assert read_inspection({"is_ready": True}).has_figures
    assert read_inspection({"is_ready": False, "kv": {"demanded_bytes": 5}}).has_figures
