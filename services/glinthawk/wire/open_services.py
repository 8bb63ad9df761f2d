"""Health and reflection, which anyone may call: served apart, so that nobody can fill the server.

Their calls have threads of their own. A `Watch` of health holds none while it watches, and there
is a bound to how many there are; a reflection stream holds one, for a bounded time.

The library sends to a watching stream under the lock of the health servicer, waits there until it
is sent, and takes the same lock on the server's own thread when a stream ends: one that ends while
another is sent to would stop the server for good. So one thread of ours sends, in order, and
nobody waits for it.
"""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any

import grpc

from glinthawk.wire.time_limit import cut_off_after

HEALTH = "/grpc.health.v1."
REFLECTION = "/grpc.reflection."

MAX_WATCHES = 256
REFLECTION_S = 30.0
"""Streams that watch the health of a server; how long one that asks what it serves may last."""

SEND_S = 5.0
"""How long a stream that watches may take to accept a status; the others wait for it."""

_HEALTH_THREADS = 2
_REFLECTION_THREADS = 4


class OpenServices:
    """The threads of one server's open services, and their bounds."""

    def __init__(
        self,
        *,
        max_watches: int = MAX_WATCHES,
        reflection_s: float = REFLECTION_S,
        send_s: float = SEND_S,
    ) -> None:
        self._health = ThreadPoolExecutor(_HEALTH_THREADS, thread_name_prefix="grpc-health")
        self._reflection = ThreadPoolExecutor(
            _REFLECTION_THREADS, thread_name_prefix="grpc-reflection"
        )
        self._sender = ThreadPoolExecutor(1, thread_name_prefix="grpc-health-send")
        self._max_watches = max_watches
        self._watches = threading.BoundedSemaphore(max_watches)
        self._reflection_s = reflection_s
        self._send_s = send_s

    def stop(self) -> None:
        """Take no more calls."""
        self._health.shutdown(wait=False)
        self._reflection.shutdown(wait=False)
        self._sender.shutdown(wait=False)

    def serve(self, method: str, handler: Any) -> Any:
        """Return the handler of a call, served apart; None if it is not of these services."""
        if method.startswith(REFLECTION):
            ask = _place(partial(self._ask, handler.stream_stream), self._reflection)
            return handler._replace(stream_stream=ask)
        if not method.startswith(HEALTH):
            return None
        if handler.unary_stream is None:
            check = _place(partial(handler.unary_unary), self._health)
            return handler._replace(unary_unary=check)
        watch = _place(partial(self._watch, handler.unary_stream), self._health)
        # The library's word for a stream that is written by callbacks, from no thread of its own.
        watch.experimental_non_blocking = True
        return handler._replace(unary_stream=watch)

    def _watch(
        self,
        inner: Callable[..., Any],
        request: Any,
        context: grpc.ServicerContext,
        send_response_callback: Callable[[Any], None],
    ) -> None:
        if not self._watches.acquire(blocking=False):
            context.abort(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"{self._max_watches} streams watch this server's health, the most there may be; "
                "use Check",
            )
        if not context.add_callback(self._watches.release):
            self._watches.release()  # it is over already
            return

        def send(response: Any) -> None:
            with cut_off_after(self._send_s, context.cancel):
                send_response_callback(response)

        def send_later(response: Any) -> None:
            with suppress(RuntimeError):  # the server has stopped
                self._sender.submit(send, response)

        inner(request, context, send_response_callback=send_later)

    def _ask(
        self, inner: Callable[..., Iterator[Any]], requests: Iterator[Any], context: Any
    ) -> Iterator[Any]:
        with cut_off_after(self._reflection_s, context.cancel):
            yield from inner(requests, context)


def _place(behaviour: Any, threads: ThreadPoolExecutor) -> Any:
    behaviour.experimental_thread_pool = threads
    return behaviour
