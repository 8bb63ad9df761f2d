"""A stage's or worker's side of membership: join, show signs of life, join again."""

import queue
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import grpc

from glinthawk.errors import GlinthawkError, PeerUnavailable
from glinthawk.telemetry.logging import get_logger
from glinthawk.wire.conversions import gateway_message_from_proto, peer_message_to_proto
from glinthawk.wire.failures import translate_rpc_error
from glinthawk.wire.grpc_server import open_channel, secret_metadata
from glinthawk.wire.messages import (
    Accepted,
    GatewayMessage,
    Heartbeat,
    Leaving,
    PeerMessage,
    Refused,
    Registration,
    Shutdown,
    View,
)
from glinthawk.wire.proto import membership_pb2 as pb
from glinthawk.wire.stubs import membership_stub

_HEARTBEATS_PER_LEASE = 4

_log = get_logger("wire")


class MembershipEvents(Protocol):
    """What a member learns, all on the client's one thread."""

    def on_accepted(self, accepted: Accepted) -> None:
        """The gateway took this process in, under this epoch."""

    def on_view(self, view: View) -> None:
        """Who is there now."""

    def on_refused(self, reason: str) -> None:
        """The gateway does not want this process; the client has stopped."""

    def on_shutdown(self, reason: str) -> None:
        """The gateway asks this process to end; the client has stopped."""

    def on_lost(self, reason: str) -> None:
        """An accepted membership broke; the client tries to join again."""


@dataclass(frozen=True)
class MembershipOptions:
    """Where and how to join. Waits between tries double from backoff_s to max_backoff_s."""

    target: str
    secret: str | None = None
    credentials: grpc.ChannelCredentials | None = None
    backoff_s: float = 0.2
    max_backoff_s: float = 5.0
    answer_s: float = 10.0


class MembershipClient:
    """Keeps this process a member of the gateway at options.target.

    Args:
        registration: what this process is.
        events: learns what happens.
        read_heartbeat: gives the figures of the next heartbeat; called on a thread.
        options: where and how.
    """

    def __init__(
        self,
        registration: Registration,
        events: MembershipEvents,
        read_heartbeat: Callable[[], Heartbeat],
        options: MembershipOptions,
    ) -> None:
        self._registration = registration
        self._events = events
        self._read_heartbeat = read_heartbeat
        self._options = options
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._session: _Session | None = None
        self._thread = threading.Thread(target=self._run, name="membership", daemon=True)

    def start(self) -> None:
        """Begin to join, on a thread."""
        self._thread.start()

    def beat(self) -> None:
        """Send a heartbeat now, if this process is a member."""
        with self._lock:
            session = self._session
        if session is not None and session.accepted:
            session.beat()

    def stop(self, reason: str = "it was stopped") -> None:
        """Leave on purpose, and wait for the thread unless it is the caller."""
        self._stop.set()
        with self._lock:
            session = self._session
        if session is not None:
            session.leave(reason)
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(5.0)

    def _run(self) -> None:
        wait_s = self._options.backoff_s
        while not self._stop.is_set():
            session = _Session(self._registration, self._read_heartbeat, self._options)
            with self._lock:
                self._session = session
            error = self._hold(session)
            if self._stop.is_set():
                return
            if session.accepted:
                wait_s = self._options.backoff_s
                _log.warning("membership_lost", gateway=self._options.target, reason=str(error))
                self._events.on_lost(str(error))
            else:
                _log.info("join_failed", gateway=self._options.target, reason=str(error))
            self._stop.wait(wait_s * random.uniform(0.8, 1.2))
            wait_s = min(2 * wait_s, self._options.max_backoff_s)

    def _hold(self, session: "_Session") -> GlinthawkError:
        """Live through one session and return why it ended."""
        try:
            if not self._stop.is_set():
                for message in session.messages():
                    self._dispatch(message, session)
            return PeerUnavailable(f"the gateway at {self._options.target} ended the membership")
        except grpc.RpcError as error:
            return translate_rpc_error(error, f"the gateway at {self._options.target}")
        except GlinthawkError as error:
            return error
        finally:
            session.close()

    def _dispatch(self, message: GatewayMessage, session: "_Session") -> None:
        if isinstance(message, Accepted):
            session.begin_heartbeats(message.lease_s)
            self._events.on_accepted(message)
        elif isinstance(message, View):
            self._events.on_view(message)
        elif isinstance(message, Refused):
            self._stop.set()
            self._events.on_refused(message.reason)
        elif isinstance(message, Shutdown):
            self._stop.set()
            self._events.on_shutdown(message.reason)


class _Session:
    """One Join call and the thread that sends its heartbeats."""

    def __init__(
        self,
        registration: Registration,
        read_heartbeat: Callable[[], Heartbeat],
        options: MembershipOptions,
    ) -> None:
        self._options = options
        self._read_heartbeat = read_heartbeat
        self._outbox: queue.SimpleQueue[PeerMessage | None] = queue.SimpleQueue()
        self._outbox.put(registration)
        self._ended = threading.Event()
        self._channel = open_channel(options.target, options.credentials)
        self.accepted = False

    def messages(self) -> Iterator[GatewayMessage]:
        """Join and yield what the gateway says until the stream ends."""
        call = membership_stub(self._channel).Join(
            self._outgoing(), metadata=secret_metadata(self._options.secret)
        )
        timer = threading.Timer(self._options.answer_s, call.cancel)
        timer.daemon = True
        timer.start()
        try:
            for raw in call:
                timer.cancel()
                yield gateway_message_from_proto(raw)
        finally:
            timer.cancel()

    def begin_heartbeats(self, lease_s: float) -> None:
        """Send a heartbeat now and several in each lease."""
        self.accepted = True
        period_s = max(0.05, lease_s / _HEARTBEATS_PER_LEASE)
        threading.Thread(
            target=self._beat, args=(period_s,), name="heartbeats", daemon=True
        ).start()

    def beat(self) -> None:
        """Send a heartbeat now."""
        self._outbox.put(self._read_heartbeat())

    def leave(self, reason: str) -> None:
        """Say goodbye and end the stream, which ends `messages`."""
        if self.accepted:
            self._outbox.put(Leaving(reason))
            self._outbox.put(None)
            self._ended.wait(1.0)
        self.close()

    def close(self) -> None:
        """End the call and the heartbeats."""
        self._ended.set()
        self._outbox.put(None)
        self._channel.close()

    def _beat(self, period_s: float) -> None:
        due = time.monotonic()
        while not self._ended.is_set():
            self.beat()
            due += period_s
            self._ended.wait(max(0.0, due - time.monotonic()))

    def _outgoing(self) -> Iterator[pb.PeerMessage]:
        while (message := self._outbox.get()) is not None:
            yield peer_message_to_proto(message)
