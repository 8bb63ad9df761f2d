import socket
import urllib.request

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from glinthawk.errors import InvalidConfig
from glinthawk.telemetry.metrics import ServiceMetrics, serve_metrics

PROMISED = {
    "glinthawk_requests_total",
    "glinthawk_tokens_in_total",
    "glinthawk_tokens_out_total",
    "glinthawk_steps_total",
    "glinthawk_dropped_frames_total",
    "glinthawk_sent_bytes_total",
    "glinthawk_received_bytes_total",
    "glinthawk_stage_busy_seconds_total",
    "glinthawk_attention_busy_seconds_total",
    "glinthawk_lane_rows_bucket",
    "glinthawk_batch_rows_bucket",
    "glinthawk_segment_seconds_bucket",
    "glinthawk_attention_seconds_bucket",
    "glinthawk_transfer_seconds_bucket",
    "glinthawk_kv_used_bytes",
    "glinthawk_kv_demanded_bytes",
    "glinthawk_kv_capacity_bytes",
    "glinthawk_queue_depth",
}


def test_every_promised_name_is_exported_from_the_start() -> None:
    registry = CollectorRegistry()
    ServiceMetrics(registry)
    names = {sample.name for family in registry.collect() for sample in family.samples}
    assert names >= PROMISED


def test_attributes_move_their_own_metric() -> None:
    registry = CollectorRegistry()
    metrics = ServiceMetrics(registry)
    metrics.set_waiting(interactive=2, batch=2)
    for value in vars(metrics).values():
        if value is metrics.waiting_sequences:
            continue
        if isinstance(value, Counter):
            value.inc(2)
        elif isinstance(value, Gauge):
            value.set(2)
        elif isinstance(value, Histogram):
            value.observe(2)
    families = list(registry.collect())
    for family in families:
        values = {sample.name: sample.value for sample in family.samples}
        total = values.get(f"{family.name}_total", values.get(f"{family.name}_sum"))
        assert 2 in (total, values.get(family.name)), family.name


def test_two_registries_are_apart() -> None:
    first, second = CollectorRegistry(), CollectorRegistry()
    ServiceMetrics(first).requests.inc()
    ServiceMetrics(second)
    assert first.get_sample_value("glinthawk_requests_total") == 1
    assert second.get_sample_value("glinthawk_requests_total") == 0


def test_metrics_are_served_on_a_port_of_their_own() -> None:
    registry = CollectorRegistry()
    ServiceMetrics(registry).tokens_out.inc(5)
    with (
        serve_metrics(registry, "127.0.0.1", 0) as server,
        urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics") as response,
    ):
        body = response.read()
    assert b"glinthawk_tokens_out_total 5.0" in body
    assert generate_latest(registry) == body


def test_a_taken_port_is_refused_with_its_number() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InvalidConfig, match=str(port)):
            serve_metrics(CollectorRegistry(), "127.0.0.1", port)
