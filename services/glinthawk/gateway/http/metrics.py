"""Figures of HTTP calls, by the pattern of their path: never by the path, which holds ids.

A call counts when its answer is over; its time is that from its arrival to the last byte, so that
of a stream is that of the whole generation.
"""

import time
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

SECONDS_BUCKETS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0),
)
"""Upper bounds, in seconds: from a probe to a long generation or upload."""

UNKNOWN = "unknown"
"""The route of a path that there is none for, and a method that HTTP does not know."""

HUNG_UP = "499"
"""The status of a call whose caller hung up before an answer began."""

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
_LABELS = ("method", "route", "status")


class HttpMetrics:
    """See the module; they appear under ``glinthawk_http_…``."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.calls = Counter(
            "glinthawk_http_requests", "HTTP calls that are over.", _LABELS, registry=registry
        )
        self.seconds = Histogram(
            "glinthawk_http_request_seconds",
            "Time from a call's arrival to the last byte of its answer.",
            _LABELS,
            registry=registry,
            buckets=SECONDS_BUCKETS,
        )
        self.open = Gauge(
            "glinthawk_http_open_requests", "HTTP calls that are open.", registry=registry
        )


class Metered:
    """The layer that counts calls; it stands outside of the one that answers for defects."""

    def __init__(
        self, app: ASGIApp, metrics: HttpMetrics, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one call."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = HUNG_UP
        began_s = self._clock()

        async def send_noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = str(message["status"])
            await send(message)

        with self._metrics.open.track_inprogress():
            try:
                await self._app(scope, receive, send_noted)
            finally:
                labels = (describe_method(scope), find_route(scope) or UNKNOWN, status)
                self._metrics.calls.labels(*labels).inc()
                self._metrics.seconds.labels(*labels).observe(self._clock() - began_s)


def find_route(scope: Scope) -> str | None:
    """Return the pattern of the path that was called; the path itself may hold anything."""
    path = getattr(scope.get("route"), "path", None)
    return path if isinstance(path, str) else None


def describe_method(scope: Scope) -> str:
    """Return the method, if it is one of HTTP's: callers may make up others."""
    method = scope["method"]
    return method if method in METHODS else UNKNOWN
