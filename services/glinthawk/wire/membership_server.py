"""The gateway's side of membership: who joined, and who went silent."""

import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import grpc

from glinthawk.errors import InvalidRequest
from glinthawk.telemetry.logging import get_logger
from glinthawk.wire.conversions import gateway_message_to_proto, peer_message_from_proto
from glinthawk.wire.frames import PROTOCOL_VERSION
from glinthawk.wire.grpc_server import GrpcServer
from glinthawk.wire.messages import (
    Accepted,
    GatewayMessage,
    Heartbeat,
    Leaving,
    Refused,
    Registration,
    Shutdown,
    View,
)
from glinthawk.wire.proto import membership_pb2 as pb
from glinthawk.wire.proto import membership_pb2_grpc
from glinthawk.wire.stubs import register_membership
from glinthawk.wire.time_limit import cut_off_after

SERVICE = "glinthawk.v1.Membership"

_STALL_SHARE = 0.5
_STALL_CHECKS = 4
"""A gap between two checks of more than this share of a lease, and of more than so many checks, is
a stall of ours: what a member may have said in it was not read yet."""

_log = get_logger("wire")


class MembershipHandler(Protocol):
    """What the gateway decides and learns. Calls come from several threads, never two at
    once for one member, and a member's `on_leave` comes after its `on_join`."""

    def on_join(self, registration: Registration) -> Accepted | Refused:
        """Decide about a process that wants to join. Called again when it comes back."""

    def on_joined(self, registration: Registration) -> None:
        """Learn that an accepted member can be reached now: `send` works, a view may go out."""

    def on_heartbeat(self, name: str, heartbeat: Heartbeat) -> None:
        """Learn the figures of a member."""

    def on_leave(self, name: str, reason: str, lost: bool) -> None:
        """Learn that a member is gone: lost, or (not lost) it left on purpose."""


class _Session:
    """One accepted Join call."""

    def __init__(self, registration: Registration, lease_s: float, now: float) -> None:
        self.registration = registration
        self.lease_s = lease_s
        self.last_seen = now
        self.outbox: queue.SimpleQueue[GatewayMessage | None] = queue.SimpleQueue()
        self.calls = threading.RLock()  # held while the handler is told about this member
        self.is_ended = False


class MembershipServer:
    """Serves Membership.Join.

    A lease measures the silence of a member, so time in which this process itself did not run (it
    was stopped, or its machine stood still) says nothing about anybody: then every lease begins
    anew.

    Args:
        handler: decides and learns.
        clock: seconds that only grow; leases are measured with it.
        first_message_s: a caller that has not registered after so long is dropped.
    """

    def __init__(
        self,
        handler: MembershipHandler,
        clock: Callable[[], float] = time.monotonic,
        *,
        first_message_s: float = 5.0,
        check_every_s: float = 0.25,
    ) -> None:
        self._handler = handler
        self._clock = clock
        self._first_message_s = first_message_s
        self._check_every_s = check_every_s
        self._lock = threading.Lock()
        self._join_lock = threading.Lock()
        self._sessions: dict[str, _Session] = {}
        self._checked_at = clock()
        self._stop = threading.Event()
        self._monitor = threading.Thread(target=self._watch, name="leases", daemon=True)

    def attach(self, server: GrpcServer) -> None:
        """Offer the service on the gateway's gRPC server, before that starts."""
        servicer = _MembershipServicer(self._join)
        server.add(
            SERVICE,
            lambda bare: register_membership(servicer, bare),
        )

    def start(self) -> None:
        """Watch the leases."""
        self._checked_at = self._clock()
        self._monitor.start()

    def stop(self, reason: str) -> None:
        """Ask every member to end, then end their streams; `on_leave` is not called."""
        self._stop.set()
        with self._lock:
            sessions = list(self._sessions.values())
            self._sessions.clear()
        for session in sessions:
            session.is_ended = True
            session.outbox.put(Shutdown(reason))
            session.outbox.put(None)
        if self._monitor.is_alive():
            self._monitor.join(2.0)

    def names(self) -> list[str]:
        """Return the names of those who are members now."""
        with self._lock:
            return list(self._sessions)

    def send(self, name: str, message: View | Shutdown) -> bool:
        """Queue a message to a member; return False if it is none."""
        with self._lock:
            session = self._sessions.get(name)
        if session is None:
            return False
        session.outbox.put(message)
        return True

    def broadcast(self, message: View | Shutdown) -> None:
        """Queue a message to every member."""
        for name in self.names():
            self.send(name, message)

    def check_leases(self) -> None:
        """Drop the members that were silent for longer than their lease. Called again and again;
        after a gap in the calls nobody is judged by what came in it."""
        now = self._clock()
        gap_s, self._checked_at = now - self._checked_at, now
        with self._lock:
            sessions = list(self._sessions.values())
        for session in sessions:
            if self._is_stall(gap_s, session):
                _log.warning(
                    "lease_began_anew", name=session.registration.name, stalled_s=round(gap_s, 1)
                )
                session.last_seen = now
            if now - session.last_seen > session.lease_s:
                self._end_if_silent(session, now)

    def _end_if_silent(self, session: _Session, now: float) -> None:
        """Drop a member, unless it was heard of meanwhile, or the handler is busy with what it
        said: then the next check looks again."""
        if not session.calls.acquire(blocking=False):
            return
        try:
            silent_s = now - session.last_seen
            if silent_s > session.lease_s:
                self._end(
                    session,
                    f"{session.registration.name} was silent for {silent_s:.1f} s, its lease is "
                    f"{session.lease_s:g} s",
                    lost=True,
                )
        finally:
            session.calls.release()

    def _is_stall(self, gap_s: float, session: _Session) -> bool:
        """Whether so long a gap between two checks is a stall of this process."""
        return gap_s > max(session.lease_s * _STALL_SHARE, self._check_every_s * _STALL_CHECKS)

    def _watch(self) -> None:
        while not self._stop.wait(self._check_every_s):
            self.check_leases()

    def _join(self, incoming: Iterator[pb.PeerMessage], context: Any) -> Iterator[Any]:
        try:
            with cut_off_after(self._first_message_s, context.cancel):
                first = peer_message_from_proto(next(incoming))
        except StopIteration:
            return
        if not isinstance(first, Registration):
            raise InvalidRequest("the first message of a member must be its registration")
        answer, session = self._admit(first)
        yield gateway_message_to_proto(answer)
        if session is None:
            return
        threading.Thread(
            target=self._listen, args=(session, incoming), name=f"member-{first.name}", daemon=True
        ).start()
        context.add_callback(lambda: session.outbox.put(None))
        self._handler.on_joined(first)
        while (message := session.outbox.get()) is not None:
            yield gateway_message_to_proto(message)

    def _admit(
        self, registration: Registration
    ) -> tuple[Accepted | Refused | Shutdown, _Session | None]:
        name = registration.name
        if registration.protocol_version != PROTOCOL_VERSION:
            reason = (
                f"{name} {registration.version} speaks protocol {registration.protocol_version}, "
                f"the gateway speaks {PROTOCOL_VERSION}: run the same release everywhere"
            )
            return Refused(reason), None
        with self._join_lock:
            with self._lock:
                former = self._sessions.get(name)
            if former is not None:
                self._end(former, f"{name} registered again", lost=True)
            answer = self._handler.on_join(registration)
            if isinstance(answer, Refused):
                _log.warning("member_refused", name=name, reason=answer.reason)
                return answer, None
            session = _Session(registration, answer.lease_s, self._clock())
            with self._lock:
                if self._stop.is_set():
                    return Shutdown("it is ending"), None  # the next one may well want it
                self._sessions[name] = session
        _log.info("member_joined", name=name, role=registration.role.value, epoch=answer.epoch)
        return answer, session

    def _listen(self, session: _Session, incoming: Iterator[pb.PeerMessage]) -> None:
        name = session.registration.name
        try:
            for raw in incoming:
                message = peer_message_from_proto(raw)
                session.last_seen = self._clock()
                if isinstance(message, Leaving):
                    self._end(session, message.reason, lost=False)
                    return
                with session.calls:
                    if isinstance(message, Heartbeat) and not session.is_ended:
                        self._handler.on_heartbeat(name, message)
        except InvalidRequest as error:
            self._end(session, f"{name} sent a bad message: {error}", lost=True)
        except grpc.RpcError:
            self._end(session, f"the stream to {name} broke", lost=True)
        else:
            self._end(session, f"{name} ended its stream", lost=True)

    def _end(self, session: _Session, reason: str, *, lost: bool) -> None:
        """Remove a session, once, and tell the handler."""
        name = session.registration.name
        with session.calls:
            with self._lock:
                if session.is_ended:
                    return
                session.is_ended = True
                if self._sessions.get(name) is session:
                    del self._sessions[name]
            session.outbox.put(None)
            _log.warning("member_left", name=name, reason=reason, lost=lost)
            self._handler.on_leave(name, reason, lost)


class _MembershipServicer(membership_pb2_grpc.MembershipServicer):
    """Binds the generated interface to the server's method."""

    def __init__(self, join: Any) -> None:
        self._join = join

    def Join(self, request_iterator: Any, context: grpc.ServicerContext) -> Any:
        """Hold a membership."""
        return self._join(request_iterator, context)
