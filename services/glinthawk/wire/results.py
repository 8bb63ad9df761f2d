"""The outcome of a step (core's StepResult) as the payload of a RESULT frame.

    prefix    u32: sampled n, prompt positions p, logprobs g, top entries t, error bytes e
    sampled   sequences u64[n], tokens u32[n], error lengths u32[n], marks u8[n]
              (bit 0: has logprobs, bit 1: has an error)
    prompt    sequences u64[p], positions u32[p]
    logprobs  logprobs f64[g], tokens u32[g], ranks u32[g], top lengths u32[g]: those of the
              marked sampled rows first, then one for each prompt position
    top       logprobs f64[t], tokens u32[t]
    errors    UTF-8, one after another

Lane and step stand in the frame header.
"""

import struct
from collections.abc import Iterator

import numpy as np

from glinthawk.core.ids import LaneId, SequenceId
from glinthawk.core.step import SampledToken, StepResult, TokenLogprobs
from glinthawk.wire.buffers import Reader, pack_array, require
from glinthawk.wire.frames import FrameError, FrameHeader

_PREFIX = struct.Struct("<IIIII")
_HAS_LOGPROBS = 1
_HAS_ERROR = 2


def encode_result(result: StepResult) -> bytes:
    """Return the payload of a RESULT frame.

    Raises:
        FrameError: a number does not fit into its bits.
    """
    sampled, prompt = result.sampled, result.prompt_logprobs
    logprobs = [item.logprobs for item in sampled if item.logprobs is not None]
    logprobs += [item for _, _, item in prompt]
    top = [entry for item in logprobs for entry in item.top]
    errors = ["" if item.error is None else item.error for item in sampled]
    encoded = [error.encode() for error in errors]
    marks = [
        (_HAS_LOGPROBS if item.logprobs is not None else 0)
        | (_HAS_ERROR if item.error is not None else 0)
        for item in sampled
    ]
    error_bytes = b"".join(encoded)
    return b"".join(
        (
            _PREFIX.pack(len(sampled), len(prompt), len(logprobs), len(top), len(error_bytes)),
            pack_array([item.sequence for item in sampled], "<u8"),
            pack_array([item.token for item in sampled], "<u4"),
            pack_array([len(error) for error in encoded], "<u4"),
            pack_array(marks, "u1"),
            pack_array([sequence for sequence, _, _ in prompt], "<u8"),
            pack_array([position for _, position, _ in prompt], "<u4"),
            pack_array([item.logprob for item in logprobs], "<f8"),
            pack_array([item.token for item in logprobs], "<u4"),
            pack_array([item.rank for item in logprobs], "<u4"),
            pack_array([len(item.top) for item in logprobs], "<u4"),
            pack_array([logprob for _, logprob in top], "<f8"),
            pack_array([token for token, _ in top], "<u4"),
            error_bytes,
        )
    )


def decode_result(payload: bytes | bytearray | memoryview, header: FrameHeader) -> StepResult:
    """Read the payload of a RESULT frame.

    Raises:
        FrameError: the payload is not a result, or contradicts itself.
    """
    reader = Reader(payload, "a result")
    num_sampled, num_prompt, num_logprobs, num_top, error_bytes = _PREFIX.unpack(
        reader.take(_PREFIX.size)
    )
    sequences = reader.array("<u8", num_sampled).tolist()
    tokens = reader.array("<u4", num_sampled).tolist()
    error_lengths = reader.array("<u4", num_sampled)
    marks = reader.array("u1", num_sampled)
    require(bool(np.all(marks <= (_HAS_LOGPROBS | _HAS_ERROR))), "a result mark is not known")
    marked = int(np.count_nonzero(marks & _HAS_LOGPROBS))
    require(
        marked + num_prompt == num_logprobs,
        f"a result of {marked} marked rows and {num_prompt} prompt positions has {num_logprobs} "
        "logprobs",
    )
    total = int(error_lengths.sum(dtype=np.uint64))
    require(total == error_bytes, f"error lengths sum to {total}, not to {error_bytes}")
    prompt_sequences = reader.array("<u8", num_prompt).tolist()
    positions = reader.array("<u4", num_prompt).tolist()
    logprobs = iter(_read_logprobs(reader, num_logprobs, num_top))
    errors = (reader.text(length) for length in error_lengths.tolist())
    rows = zip(sequences, tokens, marks.tolist(), errors, strict=True)
    sampled = tuple(_build_sampled(*row, logprobs) for row in rows)
    reader.finish()
    prompt = tuple(
        (SequenceId(sequence), position, item)
        for sequence, position, item in zip(prompt_sequences, positions, logprobs, strict=True)
    )
    return StepResult(LaneId(header.lane), header.step, sampled, prompt)


def _build_sampled(
    sequence: int, token: int, mark: int, error: str, logprobs: Iterator[TokenLogprobs]
) -> SampledToken:
    has_error = bool(mark & _HAS_ERROR)
    require(has_error or not error, "a result has an error text without its mark")
    return SampledToken(
        SequenceId(sequence),
        token,
        next(logprobs) if mark & _HAS_LOGPROBS else None,
        error if has_error else None,
    )


def _read_logprobs(reader: Reader, count: int, num_top: int) -> list[TokenLogprobs]:
    values = reader.array("<f8", count)
    tokens = reader.array("<u4", count).tolist()
    ranks = reader.array("<u4", count).tolist()
    lengths = reader.array("<u4", count)
    total = int(lengths.sum(dtype=np.uint64))
    require(total == num_top, f"top lengths sum to {total}, not to {num_top}")
    top_values = reader.array("<f8", num_top)
    top_tokens = reader.array("<u4", num_top).tolist()
    if np.isnan(values).any() or np.isnan(top_values).any():
        raise FrameError("a logprob is not a number")
    top = list(zip(top_tokens, top_values.tolist(), strict=True))
    ends = np.cumsum(lengths, dtype=np.int64).tolist()
    return [
        TokenLogprobs(token, value, rank, tuple(top[end - length : end]))
        for token, value, rank, length, end in zip(
            tokens, values.tolist(), ranks, lengths.tolist(), ends, strict=True
        )
    ]
