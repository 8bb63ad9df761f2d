"""The process round a stage or an attention worker: listening, signals, and membership.

Both are members of a gateway, and differ only in what they compute:

    MembershipClient --view--> Role.follow          servers: gRPC (health, reflection, Data,
    DataServer --connections--> Role.accept                  Control), TCP frames, metrics
    Role.run is the body of the compute thread

A member outlives its gateway, unless it was started to end with it: it forgets, and joins the
next. Asked by a signal to end, one that holds something asks the gateway for its leave first, and
stays until that has no more need of it; a second signal ends it at once. A thread that ends by a
defect ends the process: what it did, nobody does. Nothing here knows layers or pages.

A signal handler runs between two statements of the main thread, also within a wait, so it must
touch no lock that the main thread may hold: what happens is told through a `SimpleQueue`.
"""

import contextlib
import queue
import signal
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from uuid import uuid4

from prometheus_client import CollectorRegistry

from glinthawk import __version__
from glinthawk.config import PeerConfig
from glinthawk.errors import GlinthawkError, InvariantBroken
from glinthawk.telemetry.defects import ThreadDefects
from glinthawk.telemetry.logging import get_logger
from glinthawk.telemetry.metrics import serve_metrics
from glinthawk.wire.control import Description, attach_control
from glinthawk.wire.data_server import DataServer, DataServerOptions
from glinthawk.wire.grpc_server import GrpcServer, join_address
from glinthawk.wire.membership_client import MembershipClient, MembershipOptions
from glinthawk.wire.messages import (
    Accepted,
    AttentionOffer,
    Heartbeat,
    Registration,
    StageOffer,
    View,
)
from glinthawk.wire.tickets import Hello
from glinthawk.wire.transport import Connection

log = get_logger("wire.member")

EXIT_OK = 0
EXIT_FAILED = 1

REJOIN_AFTER_S = 1.0
"""Pause before looking for the next gateway, while the last one ends."""

PATIENCE_S = 15.0
"""A gateway that is ending may still answer, with a refusal; so long it is asked again."""

DRAIN_GRACE_S = 5.0
"""How much longer than announced a draining member waits for its gateway's word."""

JOIN_S = 5.0
"""How long the compute thread is given to end."""


class Role(ABC):
    """What a member computes, as its process sees it."""

    @property
    @abstractmethod
    def offer(self) -> StageOffer | AttentionOffer:
        """What the gateway is told."""

    @abstractmethod
    def run(self) -> None:
        """Compute until `stop`; a GlinthawkError from here ends the process with its message."""

    @abstractmethod
    def stop(self) -> None:
        """Let `run` return, from any thread."""

    def attach(self, server: GrpcServer) -> None:  # noqa: B027 - a stage offers nothing
        """Offer services of its own on the process's gRPC server, before that starts."""

    @abstractmethod
    def accept(self, connection: Connection, hello: Hello) -> None:
        """Serve a data connection that a peer has opened, on a thread of its own."""

    @abstractmethod
    def follow(self, view: View) -> None:
        """Learn who is there; must not block."""

    @abstractmethod
    def forget(self) -> None:
        """The gateway's run is over: drop what belongs to it, also its connections."""

    @abstractmethod
    def stats(self) -> Mapping[str, float]:
        """Return figures for heartbeats; called from several threads."""


class MemberProcess:
    """One running member. drain_s: how long it stays, when a signal asks it to end, for what it
    holds; one that ends with its parent does not."""

    def __init__(
        self, config: PeerConfig, role: Role, registry: CollectorRegistry, *, drain_s: float = 0.0
    ) -> None:
        self._config = config
        self._role = role
        self._registry = registry
        self._kind = "stage" if isinstance(role.offer, StageOffer) else "attention"
        self._changes: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._is_ended = False
        self._is_member = False
        self._drain_s = 0.0 if config.exit_with_parent else drain_s
        self._drain_until: float | None = None
        self._exit_code = EXIT_OK
        self._reason = "it was stopped"
        self._patient_until: float | None = None

    def serve(self) -> int:
        """Listen, join, compute until a signal or the gateway ends it; return the exit code.

        Raises:
            InvalidConfig: a port is taken.
        """
        with ThreadDefects(self._fail_by_defect):
            return self._serve()

    def _serve(self) -> int:
        config = self._config
        server = GrpcServer(config.host, config.grpc_port, secret=config.secret)
        data = DataServer(
            config.name,
            self._role.accept,
            DataServerOptions(
                tcp=config.transport != "grpc",
                tcp_host=config.host,
                tcp_port=config.data_port,
                advertised_host=config.advertise_host,
            ),
        )
        data.attach(server)
        attach_control(server, self._describe)
        self._role.attach(server)
        server.start()
        data.start()
        metrics = serve_metrics(self._registry, config.host, config.metrics_port)
        log.info(
            "listening",
            grpc_port=server.port,
            data_port=data.tcp_port,
            metrics_port=metrics.port,
        )
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: self._drain_or_end())
        compute = threading.Thread(target=self._compute, name="compute", daemon=True)
        compute.start()
        server.set_serving(True)
        self._hold_memberships(server.port, data.tcp_port)
        self._role.stop()
        compute.join(JOIN_S)
        self._role.forget()
        data.stop()
        server.stop(0.2)
        metrics.close()
        return self._exit_code

    def _hold_memberships(self, grpc_port: int, tcp_port: int) -> None:
        """Be a member of one gateway's run after the other, until the process ends."""
        config = self._config
        registration = Registration(
            name=config.name,
            version=__version__,
            address=join_address(config.advertise_host or config.host, grpc_port),
            offer=self._role.offer,
            tcp_port=tcp_port,
            instance=uuid4().hex,
        )
        while not self._is_ended:
            client = MembershipClient(
                registration,
                self,
                lambda: Heartbeat(self._role.stats(), self._drain_left()),
                MembershipOptions(config.gateway, secret=config.secret),
            )
            client.start()
            self._await_change()
            if self._drain_until is not None and not self._is_ended:
                self._await_leave(client)
            client.stop(self._reason if self._is_ended else "its run is over")
            if not self._is_ended:
                self._role.forget()
                self._await_change(REJOIN_AFTER_S)

    def _compute(self) -> None:
        try:
            self._role.run()
        except GlinthawkError as error:
            self._fail(str(error))
        finally:
            # Without its compute thread the process is of no use, whatever ended it.
            if not self._is_ended:
                self._fail("the compute thread ended")

    def _drain_or_end(self) -> None:
        """What a signal does; runs between two statements of the main thread."""
        if self._is_member and self._drain_s > 0 and self._drain_until is None:
            self._drain_until = time.monotonic() + self._drain_s
            self._changes.put(None)
        else:
            self._end()

    def _drain_left(self) -> float | None:
        if self._drain_until is None:
            return None
        return max(0.0, self._drain_until - time.monotonic())

    def _await_leave(self, client: MembershipClient) -> None:
        """Stay until the gateway has no more need of this process, or the time is over."""
        log.info("draining", seconds=self._drain_s)
        client.beat()
        self._await_change((self._drain_left() or 0.0) + DRAIN_GRACE_S)
        self._is_ended = True

    def _await_change(self, timeout_s: float | None = None) -> None:
        """Wait until something has happened since the last time, at most `timeout_s`."""
        with contextlib.suppress(queue.Empty):
            self._changes.get(timeout=timeout_s)
            while True:
                self._changes.get_nowait()

    def _end(self) -> None:
        self._is_ended = True
        self._changes.put(None)

    def _fail(self, reason: str) -> None:
        self._exit_code = EXIT_FAILED
        self._reason = reason
        self._end()
        log.error("member_failed", reason=reason)

    def _fail_by_defect(self, defect: InvariantBroken) -> None:
        if not self._is_ended:
            self._fail(str(defect))

    def _describe(self) -> Description:
        return Description(
            self._kind, self._config.name, __version__, stats=dict(self._role.stats())
        )

    # --- MembershipEvents

    def on_accepted(self, accepted: Accepted) -> None:
        """The gateway took this process in."""
        self._patient_until = None
        self._is_member = True
        log.info("joined", gateway=self._config.gateway, epoch=accepted.epoch)

    def on_view(self, view: View) -> None:
        """Who is there."""
        self._role.follow(view)

    def on_refused(self, reason: str) -> None:
        """The gateway does not want this process, or is ending."""
        if self._patient_until is not None and time.monotonic() < self._patient_until:
            log.info("join_failed", gateway=self._config.gateway, reason=reason)
            self._changes.put(None)
            return
        self._fail(f"the gateway at {self._config.gateway} refused this process: {reason}")

    def on_shutdown(self, reason: str) -> None:
        """The run is over: end with it, or wait for the next."""
        log.info("gateway_ended", gateway=self._config.gateway, reason=reason)
        self._is_member = False
        if self._config.exit_with_parent or self._drain_until is not None:
            self._end()
            return
        self._patient_until = time.monotonic() + PATIENCE_S
        self._changes.put(None)

    def on_lost(self, reason: str) -> None:
        """The gateway went away; the client joins again when it is back."""
        self._is_member = False
        log.warning("gateway_lost", gateway=self._config.gateway, reason=reason)
