"""A seeded mutator against every decoder: an error, or a well-formed value, within limits."""

import os
import socket
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np

from glinthawk.core.step import StepKind, StepPlan
from glinthawk.errors import GlinthawkError, InvariantBroken, PeerUnavailable
from glinthawk.wire.composition import MAX_STEP_ROWS, decode_step, encode_step
from glinthawk.wire.failures import decode_failure, encode_failure
from glinthawk.wire.frames import HEADER_BYTES, FrameError, FrameHeader, FrameKind
from glinthawk.wire.results import decode_result, encode_result
from glinthawk.wire.tcp import TcpConnection, TcpOptions
from unit.wire.factories import build_plan, build_result

NUM_FRAMES = int(os.environ.get("GLINTHAWK_FUZZ_FRAMES", "100000"))
LIMIT = 1 << 16
SLOWEST_S = 2.0
INTERESTING = np.array([0, 1, 2, 0x7F, 0x80, 0xFF, 0xFE, 0x3F], np.uint8)

Decoder = Callable[[memoryview, FrameHeader], Any]
DECODERS: dict[FrameKind, Decoder] = {
    FrameKind.STEP: decode_step,
    FrameKind.COMPOSE: decode_step,
    FrameKind.RESULT: decode_result,
    FrameKind.FAILED: lambda payload, header: decode_failure(payload),
}


def build_seeds() -> list[bytes]:
    frames = []
    for seed in range(6):
        for kind in StepKind:
            plan = build_plan(seed, kind=kind, n=seed % 4 + 1)
            for frame_kind, full in ((FrameKind.STEP, True), (FrameKind.COMPOSE, False)):
                payload = encode_step(plan, include_tokens_and_registrations=full)
                header = FrameHeader(frame_kind, 1, plan.lane, plan.step, rows=plan.num_rows)
                frames.append(header.pack(len(payload)) + payload)
        payload = encode_result(build_result(seed, seed + 1))
        frames.append(FrameHeader(FrameKind.RESULT, 1, 2, 3).pack(len(payload)) + payload)
    payload = encode_failure(InvariantBroken("a message"))
    frames.append(FrameHeader(FrameKind.FAILED).pack(len(payload)) + payload)
    return frames


class Mutator:
    """Changes a few bytes of a frame, or its length; favours headers and prefixes."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._seeds = [np.frombuffer(frame, np.uint8) for frame in build_seeds()]

    def batch(self, size: int) -> list[bytearray]:
        rng = self._rng
        picks = rng.integers(0, len(self._seeds), size).tolist()
        places = rng.random((size, 4)) ** 2
        random_bytes = rng.integers(0, 256, (size, 4), np.uint8)
        chosen = INTERESTING[rng.integers(0, len(INTERESTING), (size, 4))]
        values = np.where(rng.random((size, 4)) < 0.5, random_bytes, chosen)
        num_changes = rng.integers(1, 5, size).tolist()
        modes = rng.random(size).tolist()
        frames = []
        for i, pick in enumerate(picks):
            frame = bytearray(self._seeds[pick].tobytes())
            # three quarters leave the header whole, so that the decoders behind it are reached
            first = 0 if modes[i] < 0.25 else HEADER_BYTES
            offsets = first + (places[i] * (len(frame) - first)).astype(np.int64)
            for change in range(num_changes[i]):
                frame[int(offsets[change])] = int(values[i, change])
            if modes[i] > 0.9:
                del frame[int(offsets[3]) :]
            frames.append(frame)
        return frames


def check_well_formed(value: Any) -> None:
    if isinstance(value, tuple):
        plan, size = value
        assert isinstance(plan, StepPlan)
        assert size % 64 == 0
        assert plan.num_rows <= MAX_STEP_ROWS
        assert len(plan.sequences) == len(plan.starts) == len(plan.counts) == len(plan.samples)
        assert len(plan.tokens) in (0, plan.num_rows)
        assert plan.samples.dtype == np.bool_


def receive(frame: bytearray) -> str:
    """Do what a receiver does with a frame and say how it ended."""
    try:
        header = FrameHeader.unpack(frame, LIMIT)
    except FrameError:
        return "header refused"
    payload = memoryview(frame)[HEADER_BYTES:]
    decoder = DECODERS.get(header.kind)
    if decoder is None:
        return "no decoder"
    try:
        value = decoder(payload, header)
    except FrameError:
        return "payload refused"
    if not isinstance(value, GlinthawkError):
        check_well_formed(value)
    return "decoded"


def test_mutated_frames_give_an_error_or_a_well_formed_value() -> None:
    mutator = Mutator(seed=9)
    outcomes: dict[str, int] = {}
    slowest_s = 0.0
    left = NUM_FRAMES
    while left > 0:
        for frame in mutator.batch(min(left, 2000)):
            begin = time.thread_time()
            outcome = receive(frame)
            slowest_s = max(slowest_s, time.thread_time() - begin)
            outcomes[outcome] = outcomes.get(outcome, 0) + 1
        left -= 2000
    assert sum(outcomes.values()) == NUM_FRAMES
    for outcome in ("header refused", "payload refused", "decoded"):
        assert outcomes[outcome] > NUM_FRAMES // 100, outcomes
    assert slowest_s < SLOWEST_S


def test_mutated_frames_do_not_allocate_beyond_a_small_multiple_of_their_size() -> None:
    mutator = Mutator(seed=10)
    frames = mutator.batch(2000)
    longest = max(map(len, frames))
    tracemalloc.start()
    try:
        for frame in frames:
            before, _ = tracemalloc.get_traced_memory()
            tracemalloc.reset_peak()
            receive(frame)
            _, peak = tracemalloc.get_traced_memory()
            assert peak - before < 50 * longest + (1 << 16)
    finally:
        tracemalloc.stop()


def test_a_connection_survives_mutated_streams() -> None:
    def allocate(header: FrameHeader) -> bytearray:
        assert header.payload_bytes <= LIMIT
        return bytearray(header.payload_bytes)

    ends = set()
    for frame in Mutator(seed=11).batch(300):
        near, far = socket.socketpair()
        connection = TcpConnection(near, "mutant", TcpOptions(payload_limit=LIMIT))
        with far:
            far.sendall(frame)
            far.shutdown(socket.SHUT_WR)
            try:
                while True:
                    connection.receive(allocate)
            except (FrameError, PeerUnavailable) as error:
                ends.add(type(error))
        connection.close()
    assert ends == {FrameError, PeerUnavailable}
