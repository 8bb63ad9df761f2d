from dataclasses import replace

import pytest

from glinthawk.core.ids import LaneId, SequenceId
from glinthawk.core.step import SampledToken, StepResult, TokenLogprobs
from glinthawk.wire.frames import FrameError, FrameHeader, FrameKind
from glinthawk.wire.results import decode_result, encode_result
from unit.wire.factories import build_result

HEADER = FrameHeader(FrameKind.RESULT, lane=3, step=77)


@pytest.mark.parametrize("n", [0, 1, 2, 7, 64])
def test_a_result_comes_back_whole(n: int) -> None:
    result = build_result(n, n)
    assert decode_result(encode_result(result), HEADER) == result


def test_any_cut_or_extra_byte_is_refused() -> None:
    data = encode_result(build_result(1))
    for size in range(len(data)):
        with pytest.raises(FrameError):
            decode_result(data[:size], HEADER)
    with pytest.raises(FrameError):
        decode_result(data + b"\0", HEADER)


def test_a_logprob_that_is_no_number_is_refused_and_minus_infinity_is_not() -> None:
    logprobs = TokenLogprobs(1, float("-inf"), 9, ((4, -0.5),))
    result = StepResult(LaneId(3), 77, (SampledToken(SequenceId(1), 1, logprobs),))
    assert decode_result(encode_result(result), HEADER) == result
    broken = replace(logprobs, logprob=float("nan"))
    with pytest.raises(FrameError, match="not a number"):
        decode_result(
            encode_result(replace(result, sampled=(replace(result.sampled[0], logprobs=broken),))),
            HEADER,
        )
