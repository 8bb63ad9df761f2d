"""Registrations of sequences (core's SequenceStart) as bytes, inside a composition.

fixed     sequence u64, seed u64, then f64: temperature, top_p, min_p, presence, frequency,
          repetition; then u32: tokens t, prompt tokens, stop tokens s, choice, top_k,
          min_tokens, logprobs, prompt logprobs, flags
variable  tokens u32[t], stop tokens u32[s]
"""

import math
import struct
from collections.abc import Sequence

from glinthawk.core.ids import SequenceId
from glinthawk.core.sampling import SamplingParams
from glinthawk.core.step import SequenceStart
from glinthawk.wire.buffers import Reader, pack_array, require
from glinthawk.wire.frames import FrameError

_FIXED = struct.Struct("<QQ6d9I")
_HAS_TOP_K = 1
_HAS_LOGPROBS = 2
_HAS_PROMPT_LOGPROBS = 4
_SEED_NEGATIVE = 8
_KNOWN_FLAGS = 15


def pack_registrations(starts: Sequence[SequenceStart]) -> bytes:
    """Return the registrations, one after another.

    Raises:
        FrameError: a number does not fit into its bits.
    """
    parts: list[bytes] = []
    for start in starts:
        stops = sorted(start.sampling.stop_token_ids)
        try:
            parts.append(_pack_fixed(start))
        except struct.error as error:
            raise FrameError(
                f"the registration of sequence {start.sequence} does not fit: {error}"
            ) from error
        parts.append(pack_array(start.tokens, "<u4"))
        parts.append(pack_array(stops, "<u4"))
    return b"".join(parts)


def unpack_registrations(data: memoryview, count: int) -> tuple[SequenceStart, ...]:
    """Read exactly `count` registrations that fill `data`.

    Raises:
        FrameError: the bytes are not that.
    """
    require(
        count * _FIXED.size <= len(data),
        f"{count} registrations do not fit into {len(data)} bytes",
    )
    reader = Reader(data, "a registration")
    starts = tuple(_unpack(reader) for _ in range(count))
    reader.finish()
    return starts


def _pack_fixed(start: SequenceStart) -> bytes:
    sampling = start.sampling
    flags = (
        (_HAS_TOP_K if sampling.top_k is not None else 0)
        | (_HAS_LOGPROBS if sampling.num_logprobs is not None else 0)
        | (_HAS_PROMPT_LOGPROBS if sampling.num_prompt_logprobs is not None else 0)
        | (_SEED_NEGATIVE if sampling.seed < 0 else 0)
    )
    return _FIXED.pack(
        start.sequence,
        abs(sampling.seed),
        sampling.temperature,
        sampling.top_p,
        sampling.min_p,
        sampling.presence_penalty,
        sampling.frequency_penalty,
        sampling.repetition_penalty,
        len(start.tokens),
        start.prompt_tokens,
        len(sampling.stop_token_ids),
        sampling.choice,
        sampling.top_k or 0,
        sampling.min_tokens,
        sampling.num_logprobs or 0,
        sampling.num_prompt_logprobs or 0,
        flags,
    )


def _unpack(reader: Reader) -> SequenceStart:
    fields = _FIXED.unpack(reader.take(_FIXED.size))
    sequence, seed, temperature, top_p, min_p, presence, frequency, repetition = fields[:8]
    num_tokens, prompt_tokens, num_stops, choice, top_k, min_tokens = fields[8:14]
    logprobs, prompt_logprobs, flags = fields[14:]
    require(not flags & ~_KNOWN_FLAGS, f"registration flags 0x{flags:x} are not known")
    require(all(map(math.isfinite, fields[2:8])), "a sampling parameter is not finite")
    require(
        prompt_tokens <= num_tokens,
        f"a registration has {prompt_tokens} prompt tokens among {num_tokens}",
    )
    tokens = tuple(reader.array("<u4", num_tokens).tolist())
    stops = frozenset(reader.array("<u4", num_stops).tolist())
    require(len(stops) == num_stops, "stop tokens of a registration repeat")
    sampling = SamplingParams(
        temperature=temperature,
        top_p=top_p,
        top_k=top_k if flags & _HAS_TOP_K else None,
        min_p=min_p,
        presence_penalty=presence,
        frequency_penalty=frequency,
        repetition_penalty=repetition,
        min_tokens=min_tokens,
        stop_token_ids=stops,
        seed=-seed if flags & _SEED_NEGATIVE else seed,
        choice=choice,
        num_logprobs=logprobs if flags & _HAS_LOGPROBS else None,
        num_prompt_logprobs=prompt_logprobs if flags & _HAS_PROMPT_LOGPROBS else None,
    )
    return SequenceStart(SequenceId(sequence), tokens, prompt_tokens, sampling)
