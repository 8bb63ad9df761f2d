"""Both ends of real connections, for tests of what a stage sends and takes."""

import socket

from glinthawk.wire.outbox import Outbox
from glinthawk.wire.tcp import TcpConnection, TcpOptions


class Link:
    """`outbox` is the stage's end, `far` the peer's."""

    def __init__(self, peer: str) -> None:
        near, far = socket.socketpair()
        far.settimeout(60.0)
        self.near = TcpConnection(near, peer, TcpOptions())
        self.far = TcpConnection(far, "stage", TcpOptions())
        self.outbox = Outbox(self.near, lambda *_: None, lambda _: None)

    def close(self) -> None:
        """Close both ends."""
        self.outbox.close()
        self.far.close()
