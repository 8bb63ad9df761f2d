"""What the figures of HTTP calls say, and that no id or path is among their labels."""

import json
import socket
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from unit.gateway.http.serving import BODY, CHAT, LONG, WAIT_S, Served, serve, wait_until

Labels = tuple[str, str, str]


def read_calls(served: Served) -> dict[Labels, float]:
    """Return the count of each (method, route, status), as /metrics shows them."""
    text = served.http.get("/metrics").text
    return {
        (sample.labels["method"], sample.labels["route"], sample.labels["status"]): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "glinthawk_http_requests_total"
    }


def count_of(served: Served, *labels: str) -> float:
    (method, route, status) = labels
    return read_calls(served).get((method, route, status), 0.0)


def test_calls_are_counted_by_method_pattern_and_status(tmp_path: Path) -> None:
    with serve(tmp_path) as served:
        served.http.post(CHAT, json=BODY)
        served.http.post(CHAT, json=BODY | {"stream": True})
        served.http.post(CHAT, json=BODY | {"temperature": 9})
        for number in range(3):
            served.http.get(f"/v1/files/file-{number}")
            served.http.get(f"/v1/batches/batch_{number}")
            served.http.get(f"/no/such/{number}")
        served.http.request("PUT", CHAT)
        served.http.request("BREW", f"{CHAT}/pot")
        expected = {
            ("POST", CHAT, "200"): 2.0,
            ("POST", CHAT, "400"): 1.0,
            ("GET", "/v1/files/{file_id}", "404"): 3.0,
            ("GET", "/v1/batches/{batch_id}", "404"): 3.0,
            ("GET", "unknown", "404"): 3.0,
            ("PUT", CHAT, "405"): 1.0,
            ("unknown", "unknown", "404"): 1.0,
        }
        wait_until(lambda: read_calls(served).items() >= expected.items(), "all are counted")
        calls = read_calls(served)
        del calls["GET", "/metrics", "200"]
        assert calls == expected


def test_the_time_of_a_stream_is_that_of_the_whole_generation(tmp_path: Path) -> None:
    with serve(tmp_path) as served:
        served.tiers.pace_s = 0.05
        served.http.post(CHAT, json=BODY | {"stream": True, "max_tokens": 5})
        wait_until(lambda: count_of(served, "POST", CHAT, "200") == 1.0, "it is counted")
        labels = {"method": "POST", "route": CHAT, "status": "200"}
        registry = served.services.registry
        seconds = registry.get_sample_value("glinthawk_http_request_seconds_sum", labels)
        assert seconds is not None
        assert seconds >= 5 * 0.05


@pytest.mark.parametrize("is_streamed", [False, True])
def test_a_caller_who_hangs_up_is_counted_as_one(tmp_path: Path, is_streamed: bool) -> None:
    with serve(tmp_path) as served:
        served.tiers.script, served.tiers.pace_s = [*b"a"], 0.02
        content = json.dumps(LONG | {"stream": is_streamed}).encode()
        connection = socket.create_connection(served.address, WAIT_S)
        head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        connection.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
        wait_until(lambda: not served.is_idle(), "the request runs")
        if is_streamed:
            assert connection.recv(64).startswith(b"HTTP/1.1 200")
        connection.close()
        status = "200" if is_streamed else "499"
        wait_until(lambda: count_of(served, "POST", CHAT, status) == 1.0, "it is counted")


def test_calls_that_are_open_are_shown(tmp_path: Path) -> None:
    def count_open(served: Served) -> float | None:
        return served.services.registry.get_sample_value("glinthawk_http_open_requests")

    with serve(tmp_path) as served:
        served.tiers.script, served.tiers.pace_s = [*b"a"], 0.02
        assert count_open(served) == 0.0
        with httpx.stream("POST", served.url + CHAT, json=LONG | {"stream": True}) as answer:
            lines = answer.iter_lines()
            next(lines)
            assert count_open(served) == 1.0
            next(lines)  # it is open until here
        wait_until(lambda: count_open(served) == 0.0, "the call is over")
