"""Has attention workers copy sequences to each other: the calls, each in a thread of its own.

How many there are at once, and what becomes of a sequence, is said elsewhere (`evacuation`).
"""

import threading
from collections.abc import Callable, Mapping

from glinthawk.errors import GlinthawkError, PeerUnavailable
from glinthawk.gateway.events import CopyEnded
from glinthawk.scheduler import MoveOrder
from glinthawk.wire.pages import PagesToSend, send_pages


class PageCopies:
    """Copies between the members of one gateway.

    addresses: host:port of gRPC of each member now. on_end: learns of each copy's end, once, in a
    thread of its own; must not block.
    """

    def __init__(
        self,
        addresses: Callable[[], Mapping[str, str]],
        on_end: Callable[[CopyEnded], None],
        *,
        secret: str | None,
    ) -> None:
        self._addresses = addresses
        self._on_end = on_end
        self._secret = secret

    def begin(
        self, order: MoveOrder, *, source_epoch: int, target_epoch: int, timeout_s: float
    ) -> None:
        """Begin a copy that may take so long."""
        addresses = self._addresses()
        missing = [name for name in (order.source, order.target) if name not in addresses]
        if missing:
            error = PeerUnavailable(f"attention worker {missing[0]!r} is not there any more")
            self._on_end(CopyEnded(order, error=error))
            return
        pages = PagesToSend(
            number=order.number,
            sequence=order.sequence,
            num_tokens=order.num_tokens,
            source_epoch=source_epoch,
            target=order.target,
            target_address=addresses[order.target],
            target_epoch=target_epoch,
        )
        threading.Thread(
            target=self._run,
            args=(order, addresses[order.source], pages, timeout_s),
            name=f"copy-{order.number}",
            daemon=True,
        ).start()

    def _run(self, order: MoveOrder, address: str, pages: PagesToSend, timeout_s: float) -> None:
        try:
            sent = send_pages(address, pages, secret=self._secret, timeout_s=timeout_s)
        except GlinthawkError as error:
            self._on_end(CopyEnded(order, error=error))
        else:
            self._on_end(CopyEnded(order, num_bytes=sent.num_bytes))
