"""A relay between two processes that makes of the machine's loopback a slow or a broken network.

    caller -> relay (ports of another loopback address) -> process

Nothing is lost and nothing is closed: a relay that holds swallows what comes and says nothing, as a
network does that drops packets.
"""

import contextlib
import queue
import socket
import threading
import time
from collections.abc import Iterable

ADDRESS = "127.0.0.2"
"""Where relays listen: a process that advertises this host is reached through its relay."""

CHUNK_BYTES = 1 << 16


class Relay:
    """Passes on what comes to ADDRESS to the same ports of 127.0.0.1.

    delay_s: how long each piece is under way, in each direction; it may be changed meanwhile.
    """

    def __init__(self, ports: Iterable[int]) -> None:
        self.delay_s = 0.0
        self._passes = threading.Event()
        self._passes.set()
        self._is_over = False
        self._sockets: list[socket.socket] = []
        self._lock = threading.Lock()
        for port in ports:
            server = socket.create_server((ADDRESS, port))
            self._sockets.append(server)
            self._start(self._accept, server, port)

    def hold(self) -> None:
        """Pass nothing on, until `release`."""
        self._passes.clear()

    def release(self) -> None:
        """Pass on what was held, and what comes."""
        self._passes.set()

    def close(self) -> None:
        """End all connections and listen no more."""
        self._is_over = True
        self._passes.set()
        with self._lock:
            for one in self._sockets:
                _end(one)

    def _start(self, target: object, *arguments: object) -> None:
        threading.Thread(target=target, args=arguments, daemon=True).start()  # type: ignore[arg-type]

    def _accept(self, server: socket.socket, port: int) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = server.accept()
                far = socket.create_connection(("127.0.0.1", port))
                with self._lock:
                    self._sockets += [near, far]
                    for one in (near, far):
                        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                for source, sink in ((near, far), (far, near)):
                    pieces: queue.SimpleQueue[tuple[float, bytes]] = queue.SimpleQueue()
                    self._start(self._receive, source, pieces)
                    self._start(self._send, sink, pieces)

    def _receive(
        self, source: socket.socket, pieces: "queue.SimpleQueue[tuple[float, bytes]]"
    ) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(CHUNK_BYTES):
                pieces.put((time.monotonic() + self.delay_s, data))
        pieces.put((time.monotonic(), b""))

    def _send(self, sink: socket.socket, pieces: "queue.SimpleQueue[tuple[float, bytes]]") -> None:
        with contextlib.suppress(OSError):
            while True:
                due, data = pieces.get()
                time.sleep(max(0.0, due - time.monotonic()))
                self._passes.wait()
                if not data or self._is_over:
                    break
                sink.sendall(data)
        _end(sink)


def _end(one: socket.socket) -> None:
    """Close a socket, also for a thread that waits on it."""
    with contextlib.suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
    one.close()
