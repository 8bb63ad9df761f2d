"""Prometheus metrics, on a registry that is passed in and a port of their own.

Every process offers the same names; those that its role does not move stay at 0.
"""

from types import TracebackType

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from glinthawk.errors import InvalidConfig

SECONDS_BUCKETS = (
    *(50e-6, 100e-6, 200e-6, 500e-6, 1e-3, 2e-3, 5e-3, 10e-3, 20e-3, 50e-3),
    *(0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0),
)
"""Upper bounds, in seconds: from a small segment on a GPU to a long prefill on a CPU."""

ROWS_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)


class ServiceMetrics:
    """The figures of one process, registered on `registry` under ``glinthawk_…``."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self.requests = self._counter("requests", "Requests taken in.")
        self.tokens_in = self._counter("tokens_in", "Prompt tokens prefilled.")
        self.tokens_out = self._counter("tokens_out", "Tokens generated.")
        self.recomputed_tokens = self._counter(
            "recomputed_tokens",
            "Tokens prefilled again, because their KV was given up for want of room, or lost.",
        )
        self.steps = self._counter("steps", "Steps finished.")
        self.dropped_frames = self._counter("dropped_frames", "Frames of a past epoch dropped.")
        self.bytes_sent = self._counter("sent_bytes", "Payload bytes sent to other processes.")
        self.bytes_received = self._counter(
            "received_bytes", "Payload bytes received from other processes."
        )
        self.stage_busy_seconds = self._counter(
            "stage_busy_seconds", "Seconds in which the stage computed."
        )
        self.attention_busy_seconds = self._counter(
            "attention_busy_seconds", "Seconds in which the attention worker computed."
        )
        self.lane_rows = self._histogram("lane_rows", "Rows of a lane's step.", ROWS_BUCKETS)
        self.batch_rows = self._histogram(
            "batch_rows", "Rows of a segment, all its lanes.", ROWS_BUCKETS
        )
        self.segment_seconds = self._histogram("segment_seconds", "Time of a segment.")
        self.attention_seconds = self._histogram(
            "attention_seconds", "Time of one frame's attention."
        )
        self.transfer_seconds = self._histogram(
            "transfer_seconds", "Time from a frame's sending to its answer."
        )
        self.kv_used_bytes = self._gauge("kv_used_bytes", "KV bytes held now.")
        self.kv_demanded_bytes = self._gauge(
            "kv_demanded_bytes", "KV bytes wanted by running and admissible waiting sequences."
        )
        self.kv_capacity_bytes = self._gauge("kv_capacity_bytes", "KV bytes there are.")
        self.queue_depth = self._gauge("queue_depth", "Sequences or frames that wait.")
        self.waiting_sequences = Gauge(
            "glinthawk_waiting_sequences",
            "Sequences that wait in the engine, by who waits for them: interactive or batch.",
            ("class",),
            registry=registry,
        )
        self.lanes = self._gauge("lanes", "Lanes that hold sequences.")
        self.ready = self._gauge("ready", "1 while the gateway can have a token generated.")

    def set_waiting(self, *, interactive: int, batch: int) -> None:
        """Show how many sequences wait, by class."""
        self.waiting_sequences.labels("interactive").set(interactive)
        self.waiting_sequences.labels("batch").set(batch)

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(f"glinthawk_{name}", text, registry=self._registry)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(f"glinthawk_{name}", text, registry=self._registry)

    def _histogram(
        self, name: str, text: str, buckets: tuple[float, ...] = SECONDS_BUCKETS
    ) -> Histogram:
        return Histogram(f"glinthawk_{name}", text, registry=self._registry, buckets=buckets)


class MetricsServer:
    """An HTTP server that shows a registry under /metrics, from its making until `close`."""

    def __init__(self, registry: CollectorRegistry, host: str, port: int) -> None:
        try:
            self._server, self._thread = start_http_server(port, host, registry)
        except OSError as error:
            raise InvalidConfig(
                f"cannot listen on {host} port {port} for metrics: {error}; choose a free port or 0"
            ) from error

    @property
    def port(self) -> int:
        """The port it listens on."""
        return int(self._server.server_port)

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> "MetricsServer":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def serve_metrics(registry: CollectorRegistry, host: str, port: int) -> MetricsServer:
    """Show a registry over HTTP; port 0 takes a free one.

    Raises:
        InvalidConfig: the port is taken.
    """
    return MetricsServer(registry, host, port)
