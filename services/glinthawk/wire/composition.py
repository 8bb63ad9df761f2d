"""The composition of a step as bytes: it travels once, in STEP and COMPOSE frames.

    prefix   kind u8, flags u8, worker bytes u16, then u32: sequences n, rows, releases r,
             forks f, registrations g, registration bytes b          (28 bytes, padded to 32)
    arrays   sequences u64[n], releases u64[r], fork parents u64[f], fork children u64[f],
             starts u32[n], counts u32[n], fork tokens u32[f], tokens u32[rows] (flag TOKENS),
             samples u8[n]
    worker   UTF-8
    registrations (see registrations.py)
    zeros up to a multiple of 64, so that activations behind a composition are aligned

Lane and step stand in the frame header.
"""

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from glinthawk.core.ids import LaneId, SequenceId
from glinthawk.core.step import Fork, StepKind, StepPlan
from glinthawk.wire.buffers import Reader, pack_array, require
from glinthawk.wire.frames import FrameError, FrameHeader
from glinthawk.wire.registrations import pack_registrations, unpack_registrations

MAX_STEP_ROWS = 1 << 20
"""Rows of the largest step that a receiver accepts."""

_PREFIX = struct.Struct("<BBHIIIIII4x")
_FLAG_TOKENS = 1
_ALIGNMENT = 64
_U32_MAX = (1 << 32) - 1
_NO_TOKENS: npt.NDArray[np.uint32] = np.zeros(0, np.uint32)
_KINDS = {int(kind): kind for kind in StepKind}


def encode_step(plan: StepPlan, *, include_tokens_and_registrations: bool) -> bytes:
    """Return the composition as the payload of a frame, or the beginning of one.

    The length is a multiple of 64. A STEP frame may put activations behind it.

    Raises:
        FrameError: a number does not fit into its bits.
    """
    with_tokens = include_tokens_and_registrations
    worker = plan.worker.encode()
    starts = plan.registrations if with_tokens else ()
    registrations = pack_registrations(starts)
    try:
        prefix = _PREFIX.pack(
            plan.kind,
            _FLAG_TOKENS if with_tokens else 0,
            len(worker),
            len(plan.sequences),
            plan.num_rows,
            len(plan.releases),
            len(plan.forks),
            len(starts),
            len(registrations),
        )
    except struct.error as error:
        raise FrameError(f"step {plan.step} of lane {plan.lane} is too large: {error}") from error
    parts = [
        prefix,
        pack_array(plan.sequences, "<u8"),
        pack_array(plan.releases, "<u8"),
        pack_array([fork.parent for fork in plan.forks], "<u8"),
        pack_array([fork.child for fork in plan.forks], "<u8"),
        pack_array(plan.starts, "<u4"),
        pack_array(plan.counts, "<u4"),
        pack_array([fork.num_tokens for fork in plan.forks], "<u4"),
        pack_array(plan.tokens, "<u4") if with_tokens else b"",
        pack_array(plan.samples, "u1"),
        worker,
        registrations,
    ]
    data = b"".join(parts)
    return data + bytes(-len(data) % _ALIGNMENT)


def decode_step(
    payload: bytes | bytearray | memoryview, header: FrameHeader
) -> tuple[StepPlan, int]:
    """Read a composition and return it with the bytes it took: activations begin there.

    The plan keeps no reference to `payload`. Without tokens (COMPOSE), plan.tokens is empty.

    Raises:
        FrameError: the payload is not a composition, or contradicts itself or the header.
    """
    reader = Reader(payload, "a composition")
    prefix = _Prefix(*_PREFIX.unpack(reader.take(_PREFIX.size)))
    _check_prefix(prefix, header)
    n, forks = prefix.num_sequences, prefix.num_forks
    with_tokens = bool(prefix.flags & _FLAG_TOKENS)
    sequences = reader.array("<u8", n)
    releases = reader.array("<u8", prefix.num_releases)
    parents = reader.array("<u8", forks)
    children = reader.array("<u8", forks)
    starts = reader.array("<u4", n)
    counts = reader.array("<u4", n)
    fork_tokens = reader.array("<u4", forks)
    tokens = reader.array("<u4", prefix.num_rows) if with_tokens else _NO_TOKENS
    samples = reader.array("u1", n)
    worker = reader.text(prefix.worker_bytes)
    registrations = unpack_registrations(
        reader.take(prefix.registration_bytes), prefix.num_registrations
    )
    reader.align(_ALIGNMENT)
    _check_rows(prefix, starts, counts, samples)
    _check_distinct("sequences", sequences)
    _check_distinct("releases", releases)
    _check_distinct("fork children", children)
    require(not bool(np.any(parents == children)), "a sequence is forked from itself")
    require(bool(np.all(fork_tokens > 0)), "a fork of 0 tokens")
    plan = StepPlan(
        kind=_KINDS[prefix.kind],
        lane=LaneId(header.lane),
        step=header.step,
        worker=worker,
        sequences=sequences,
        starts=starts,
        counts=counts,
        samples=samples.view(np.bool_),
        tokens=tokens,
        releases=tuple(SequenceId(item) for item in releases.tolist()),
        forks=_build_forks(parents, children, fork_tokens),
        registrations=registrations,
    )
    return plan, reader.offset


@dataclass(frozen=True, slots=True)
class _Prefix:
    kind: int
    flags: int
    worker_bytes: int
    num_sequences: int
    num_rows: int
    num_releases: int
    num_forks: int
    num_registrations: int
    registration_bytes: int


def _check_prefix(prefix: _Prefix, header: FrameHeader) -> None:
    require(prefix.kind in _KINDS, f"step kind {prefix.kind} is not one of 1 to {max(_KINDS)}")
    require(
        not prefix.flags & ~_FLAG_TOKENS, f"composition flags 0x{prefix.flags:02x} are not known"
    )
    require(
        prefix.num_rows == header.rows,
        f"a composition of {prefix.num_rows} rows came in a frame of {header.rows} rows",
    )
    require(
        prefix.num_rows <= MAX_STEP_ROWS,
        f"a step of {prefix.num_rows} rows is above the limit of {MAX_STEP_ROWS}: lower the "
        "prefill budget or the lane size",
    )
    if prefix.kind == StepKind.RELEASE:
        require(prefix.num_sequences == 0, f"a release step has {prefix.num_sequences} sequences")


def _check_rows(
    prefix: _Prefix, starts: npt.NDArray[Any], counts: npt.NDArray[Any], samples: npt.NDArray[Any]
) -> None:
    total = int(counts.sum(dtype=np.uint64))
    require(total == prefix.num_rows, f"counts sum to {total}, the step has {prefix.num_rows} rows")
    require(bool(np.all(counts > 0)), "a sequence of 0 rows")
    if prefix.kind == StepKind.DECODE:
        require(bool(np.all(counts == 1)), "a decode step has a sequence of several rows")
    ends = starts.astype(np.uint64) + counts
    require(bool(np.all(ends <= _U32_MAX)), f"a position is above the limit of {_U32_MAX}")
    require(bool(np.all(samples <= 1)), "a sample mark is neither 0 nor 1")


def _check_distinct(what: str, values: npt.NDArray[Any]) -> None:
    require(len(np.unique(values)) == len(values), f"{what} of a step repeat")


def _build_forks(
    parents: npt.NDArray[Any], children: npt.NDArray[Any], num_tokens: npt.NDArray[Any]
) -> tuple[Fork, ...]:
    rows = zip(parents.tolist(), children.tolist(), num_tokens.tolist(), strict=True)
    return tuple(Fork(SequenceId(parent), SequenceId(child), n) for parent, child, n in rows)
