"""How fast frames travel, against raw sockets in the same run; gRPC is shown beside them.

Two processes. In a round, every payload size is measured with each way of sending, one after
the other in short bursts, so that whatever else the machine does meets them alike; what counts
is the median over rounds of ours / raw. The raw way is the least that Python can do: `sendall`,
and `recv_into` a prepared buffer that waits for all of it, with the same socket options.

    echo      a payload goes there and back, one at a time: the pattern of decode
    one-way   payloads follow each other, one acknowledgement at the end: the pattern of prefill
"""

import contextlib
import multiprocessing
import os
import platform
import socket
import statistics
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection as Pipe
from typing import Any, Protocol

import numpy as np

from glinthawk import __version__
from glinthawk.errors import PeerUnavailable
from glinthawk.telemetry.logging import configure_logging
from glinthawk.wire.data_server import DataServer, DataServerOptions
from glinthawk.wire.dial import DialOptions, dial
from glinthawk.wire.frames import FrameHeader, FrameKind
from glinthawk.wire.grpc_server import GrpcServer
from glinthawk.wire.tcp import TcpOptions, configure_socket
from glinthawk.wire.tickets import Hello
from glinthawk.wire.transport import Connection

KIB = 1024
GOAL_SIZES = (256 * KIB, 1024 * KIB, 4096 * KIB)
GOAL_RATIO = 0.8

_HOST = "127.0.0.1"
_ORDER = struct.Struct("<BIQ")
_PAGE = 4096
_WARMUP_MESSAGES = 5
_MODES = ("echo", "one_way")


@dataclass(frozen=True)
class TransportBenchSettings:
    """What is measured: payload sizes in bytes, rounds, and how much one sample moves (at
    most max_messages messages, at least two)."""

    sizes: tuple[int, ...] = (4 * KIB, 16 * KIB, 64 * KIB, *GOAL_SIZES)
    rounds: int = 41
    bytes_per_sample: int = 64 << 20
    max_messages: int = 500

    @classmethod
    def quick(cls) -> "TransportBenchSettings":
        """Return settings that take less than half a minute."""
        return cls((4 * KIB, 64 * KIB, *GOAL_SIZES), 15, 8 << 20, 100)

    def num_messages(self, size: int) -> int:
        """Messages of one sample."""
        return max(2, min(self.max_messages, self.bytes_per_sample // size))


class _Way(Protocol):
    """A way of sending: runs `count` messages of `payload` in a mode."""

    def run(self, mode: str, payload: memoryview, count: int) -> None: ...


def run_transport_bench(settings: TransportBenchSettings) -> dict[str, Any]:
    """Measure, and return environment, settings, samples and goals as JSON can hold them.

    A sample has bytes per second one way (an echo moves its payload twice) and seconds per
    message, as medians and 95th percentiles over rounds, and ours / raw.
    """
    largest = max(settings.sizes)
    with _run_peer(largest) as (raw_port, address), contextlib.ExitStack() as stack:
        ways: dict[str, _Way] = {
            "raw": stack.enter_context(_open_raw(raw_port, largest)),
            "tcp": stack.enter_context(_open_frames(address, "tcp", largest)),
            "grpc": stack.enter_context(_open_frames(address, "grpc", largest)),
        }
        times = _measure(ways, settings)
    samples = [
        _summarise(mode, size, settings.num_messages(size), times)
        for mode in _MODES
        for size in settings.sizes
    ]
    return {
        "benchmark": "transport",
        "environment": _describe_environment(),
        "settings": asdict(settings),
        "samples": samples,
        "goals": [_build_goal(sample) for sample in samples if sample["bytes"] in GOAL_SIZES],
    }


_Times = dict[tuple[str, str, int], list[float]]


def _measure(ways: dict[str, _Way], settings: TransportBenchSettings) -> _Times:
    """Return seconds per message by (way, mode, size), one entry a round."""
    rng = np.random.default_rng(0)
    payloads = {size: _allocate(size) for size in settings.sizes}
    for payload in payloads.values():
        payload[:] = rng.bytes(len(payload))
    times: _Times = {}
    for way in ways.values():
        for mode in _MODES:
            for payload in payloads.values():
                way.run(mode, payload, _WARMUP_MESSAGES)
    for round_number in range(settings.rounds):
        for size, payload in payloads.items():
            count = settings.num_messages(size)
            for mode in _MODES:
                names = list(ways)
                shift = round_number % len(names)
                for name in names[shift:] + names[:shift]:
                    begin = time.perf_counter()
                    ways[name].run(mode, payload, count)
                    elapsed = time.perf_counter() - begin
                    times.setdefault((name, mode, size), []).append(elapsed / count)
    return times


def _summarise(mode: str, size: int, count: int, times: _Times) -> dict[str, Any]:
    raw = times["raw", mode, size]
    sample: dict[str, Any] = {"mode": mode, "bytes": size, "messages": count}
    moved = 2 * size if mode == "echo" else size
    for name in ("raw", "tcp", "grpc"):
        seconds = times[name, mode, size]
        median = statistics.median(seconds)
        sample[name] = {
            "seconds_median": median,
            "seconds_p95": float(np.percentile(seconds, 95)),
            "bytes_per_second": moved / median,
            "over_raw": statistics.median(a / b for a, b in zip(raw, seconds, strict=True)),
        }
    return sample


def _build_goal(sample: dict[str, Any]) -> dict[str, Any]:
    value = sample["tcp"]["over_raw"]
    return {
        "name": f"frames / raw sockets, {sample['mode']}, {sample['bytes'] // KIB} KiB",
        "value": value,
        "goal": GOAL_RATIO,
        "holds": value >= GOAL_RATIO,
    }


def _describe_environment() -> dict[str, Any]:
    model = platform.processor()
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as lines:
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        model = names[0] if names else model
    return {
        "glinthawk": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "load_average": os.getloadavg()[0],
    }


class _FramesWay:
    """Ours: frames over a connection of either transport."""

    def __init__(self, connection: Connection, largest: int) -> None:
        self._connection = connection
        self._buffer = _allocate(largest)

    def run(self, mode: str, payload: memoryview, count: int) -> None:
        connection, buffer = self._connection, self._buffer
        connection.send(FrameHeader(FrameKind.STEP, lane=_MODES.index(mode), step=count))
        header = FrameHeader(FrameKind.ATTEND, rows=1)
        if mode == "echo":
            for _ in range(count):
                connection.send(header, payload)
                connection.receive(lambda _: buffer)
        else:
            for _ in range(count):
                connection.send(header, payload)
            connection.receive()


class _RawWay:
    """The baseline: a bare socket."""

    def __init__(self, sock: socket.socket, largest: int) -> None:
        self._sock = sock
        self._buffer = _allocate(largest)

    def run(self, mode: str, payload: memoryview, count: int) -> None:
        sock = self._sock
        sock.sendall(_ORDER.pack(_MODES.index(mode), count, len(payload)))
        view = self._buffer[: len(payload)]
        if mode == "echo":
            for _ in range(count):
                sock.sendall(payload)
                _fill(sock, view)
        else:
            for _ in range(count):
                sock.sendall(payload)
            _fill(sock, view[:1])


@contextlib.contextmanager
def _open_raw(port: int, largest: int) -> Iterator[_RawWay]:
    with socket.create_connection((_HOST, port)) as sock:
        configure_socket(sock, TcpOptions())
        yield _RawWay(sock, largest)


@contextlib.contextmanager
def _open_frames(address: str, transport: str, largest: int) -> Iterator[_FramesWay]:
    connection = dial(address, "bench", 1, DialOptions(transport=transport))
    try:
        yield _FramesWay(connection, largest)
    finally:
        connection.close()


@contextlib.contextmanager
def _run_peer(largest: int) -> Iterator[tuple[int, str]]:
    """Run the other process and give its raw port and its gRPC address."""
    context = multiprocessing.get_context("spawn")
    near, far = context.Pipe()
    process = context.Process(target=_serve_peer, args=(far, largest), daemon=True)
    process.start()
    far.close()
    try:
        if not near.poll(30.0):
            raise PeerUnavailable("the benchmark's second process did not start within 30 s")
        yield near.recv()
    finally:
        near.close()
        process.join(5.0)
        if process.is_alive():
            process.kill()
            process.join()


def _serve_peer(pipe: Pipe, largest: int) -> None:
    """Answer until the other end of `pipe` is closed."""
    configure_logging("warning", "console", role="bench", name="bench-peer")
    with socket.create_server((_HOST, 0)) as listener:
        threading.Thread(target=_answer_raw, args=(listener, largest), daemon=True).start()

        def handler(connection: Connection, _: Hello) -> None:
            _answer_frames(connection, largest)

        data = DataServer("bench-peer", handler, DataServerOptions())
        server = GrpcServer(_HOST, 0)
        data.attach(server)
        server.start()
        data.start()
        pipe.send((listener.getsockname()[1], server.address))
        with contextlib.suppress(EOFError):
            pipe.recv()
        data.stop()
        server.stop(0.0)


def _answer_frames(connection: Connection, largest: int) -> None:
    buffer = _allocate(largest)
    while True:
        try:
            order, _ = connection.receive()
        except PeerUnavailable:
            connection.close()
            return
        if _MODES[order.lane] == "echo":
            for _ in range(order.step):
                header, payload = connection.receive(lambda _: buffer)
                connection.send(header, payload)
        else:
            for _ in range(order.step):
                connection.receive(lambda _: buffer)
            connection.send(FrameHeader(FrameKind.OUTPUT))


def _answer_raw(listener: socket.socket, largest: int) -> None:
    sock, _ = listener.accept()
    configure_socket(sock, TcpOptions())
    order = memoryview(bytearray(_ORDER.size))
    buffer = _allocate(largest)
    with sock, contextlib.suppress(ConnectionError):
        while True:
            _fill(sock, order)
            mode, count, size = _ORDER.unpack(order)
            view = buffer[:size]
            for _ in range(count):
                _fill(sock, view)
                if _MODES[mode] == "echo":
                    sock.sendall(view)
            if _MODES[mode] == "one_way":
                sock.sendall(b"!")


def _allocate(size: int) -> memoryview:
    """Return touched memory that begins at a page: elsewhere in a page, some processors copy a
    bare payload out of the kernel at half the speed, which would flatter frames."""
    block = np.ones(size + _PAGE, np.uint8)
    start = -block.ctypes.data % _PAGE
    return block.data[start : start + size]


def _fill(sock: socket.socket, view: memoryview) -> None:
    while len(view):
        received = sock.recv_into(view, 0, socket.MSG_WAITALL)
        if received == 0:
            raise ConnectionResetError("the peer closed the connection")
        view = view[received:]
