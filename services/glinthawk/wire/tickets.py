"""Tickets: what ties a data connection to the gRPC call that agreed on it."""

import hmac
import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass

from glinthawk.errors import CapacityExceeded, Unauthenticated

TICKET_BYTES = 32


@dataclass(frozen=True)
class Hello:
    """Who opened a data connection, as it said in the authenticated Open call.

    transport is ``tcp`` or ``grpc``.
    """

    name: str
    role: str
    epoch: int
    transport: str


class TicketBook:
    """Tickets that were handed out and not used yet; each is good once, for a while.

    Args:
        clock: seconds that only grow.
        lifetime_s: how long a ticket is good.
        max_outstanding: unused tickets at once.
    """

    def __init__(
        self, clock: Callable[[], float], *, lifetime_s: float = 10.0, max_outstanding: int = 256
    ) -> None:
        self._clock = clock
        self._lifetime_s = lifetime_s
        self._max_outstanding = max_outstanding
        self._lock = threading.Lock()
        self._tickets: dict[bytes, tuple[float, Hello]] = {}

    def issue(self, hello: Hello) -> bytes:
        """Return a new ticket for the peer.

        Raises:
            CapacityExceeded: too many tickets are unused.
        """
        with self._lock:
            now = self._clock()
            self._tickets = {key: item for key, item in self._tickets.items() if item[0] > now}
            if len(self._tickets) >= self._max_outstanding:
                raise CapacityExceeded(
                    f"{len(self._tickets)} data connections were agreed on and not made, the limit "
                    f"is {self._max_outstanding}: try again in {self._lifetime_s:g} s"
                )
            ticket = secrets.token_bytes(TICKET_BYTES)
            self._tickets[ticket] = (now + self._lifetime_s, hello)
            return ticket

    def redeem(self, ticket: bytes, transport: str) -> Hello:
        """Return whom the ticket was issued to, and void it.

        Raises:
            Unauthenticated: no such ticket, or used, expired, or for another transport.
        """
        with self._lock:
            found = None
            for key in self._tickets:  # all of them, so that the time tells nothing
                if hmac.compare_digest(key, ticket):
                    found = key
            if found is not None:
                expires, hello = self._tickets.pop(found)
                if expires > self._clock() and hello.transport == transport:
                    return hello
        raise Unauthenticated(
            "a data connection showed a ticket that is wrong, used or expired: open it again"
        )
