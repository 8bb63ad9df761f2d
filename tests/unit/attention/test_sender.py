"""Sequences copied from worker to worker, through real gRPC, sockets and compute threads."""

import threading
from collections.abc import Iterator

import pytest

from glinthawk.attention.selection import Preference, is_kernel_built
from glinthawk.core.step import StepKind
from glinthawk.errors import CapacityExceeded, InvalidRequest, PeerUnavailable, StateLost
from glinthawk.wire.frames import FrameKind
from glinthawk.wire.pages import PagesSent, send_pages
from unit.attention.factories import (
    EPOCH,
    GEOMETRY,
    expect_composed,
    expected_output,
    make_plan,
)
from unit.attention.live_worker import LiveWorker

WAIT_S = 60.0
SHORT_S = 0.5
LAYERS = range(GEOMETRY.num_layers)

Pair = tuple[LiveWorker, LiveWorker]


@pytest.fixture
def pair() -> Iterator[Pair]:
    workers = (LiveWorker("w0"), LiveWorker("w1"))
    yield workers
    for worker in workers:
        worker.close()


def prefill(worker: LiveWorker, sequence: int, num_tokens: int, step: int = 1) -> None:
    worker.stage.prefill(make_plan(StepKind.PREFILL, 1, step, [(sequence, 0, num_tokens)]))


def copy(
    source: LiveWorker,
    target: LiveWorker,
    sequence: int,
    num_tokens: int,
    *,
    number: int = 1,
    timeout_s: float = WAIT_S,
) -> PagesSent:
    order = source.order_to(target, sequence, num_tokens, number=number)
    return send_pages(source.address, order, secret=None, timeout_s=timeout_s)


def assert_decodes(worker: LiveWorker, sequence: int, num_tokens: int, step: int = 50) -> None:
    """Fail unless the next token of a sequence attends to all those before it."""
    outputs = worker.stage.decode(make_plan(StepKind.DECODE, 9, step, [(sequence, num_tokens, 1)]))
    tokens = [(sequence, position) for position in range(num_tokens + 1)]
    for layer, output in enumerate(outputs):
        assert output[0] == pytest.approx(expected_output(tokens, layer), abs=2e-6)


@pytest.mark.parametrize("transport", ["tcp", "grpc"])
@pytest.mark.parametrize("backends", [("reference", "kernel"), ("kernel", "reference")])
def test_a_copied_sequence_attends_as_it_did(
    transport: str, backends: tuple[Preference, Preference]
) -> None:
    if not is_kernel_built():
        pytest.skip("the compiled kernel is not built")
    source = LiveWorker("w0", prefer=backends[0], transport=transport)
    target = LiveWorker("w1", prefer=backends[1])
    try:
        prefill(source, 7, 40)
        sent = copy(source, target, 7, 40)
        assert sent == PagesSent(3, 3 * GEOMETRY.page_bytes)
        assert target.kv_used_bytes == source.kv_used_bytes == 3 * GEOMETRY.page_bytes
        assert_decodes(target, 7, 40)
        assert_decodes(source, 7, 40)
    finally:
        source.close()
        target.close()


def test_one_connection_carries_one_copy_after_the_other(pair: Pair) -> None:
    source, target = pair
    for number, sequence in enumerate((7, 8, 9), start=1):
        prefill(source, sequence, 20 + sequence, step=number)
        copy(source, target, sequence, 20 + sequence, number=number)
    for number, sequence in enumerate((7, 8, 9), start=50):
        assert_decodes(target, sequence, 20 + sequence, step=number)


def test_copies_at_the_same_time_do_not_mix(pair: Pair) -> None:
    source, target = pair
    lengths = {sequence: 30 + 3 * sequence for sequence in range(1, 7)}
    for sequence, length in lengths.items():
        prefill(source, sequence, length, step=sequence)
    threads = [
        threading.Thread(target=copy, args=(source, target, sequence, length), kwargs=number)
        for sequence, length in lengths.items()
        for number in [{"number": 100 + sequence}]
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    for sequence, length in lengths.items():
        assert_decodes(target, sequence, length, step=50 + sequence)


def test_rows_still_on_their_way_from_a_stage_are_waited_for(pair: Pair) -> None:
    source, target = pair
    plan = make_plan(StepKind.PREFILL, 1, 1, [(7, 0, 20)])
    source.stage.prefill(plan, layers=[0])
    with pytest.raises(PeerUnavailable, match=r"sequence 7.*deadline|DEADLINE_EXCEEDED"):
        copy(source, target, 7, 20, timeout_s=SHORT_S)
    for layer in LAYERS[1:]:
        source.stage.send(FrameKind.STORE, plan, layer)
    copy(source, target, 7, 20)
    assert_decodes(target, 7, 20)


def test_a_target_without_room_refuses_and_keeps_nothing() -> None:
    source, target = LiveWorker("w0"), LiveWorker("w1", num_pages=2)
    try:
        prefill(source, 7, 40)
        with pytest.raises(CapacityExceeded, match="wants 3 pages"):
            copy(source, target, 7, 40)
        assert target.kv_used_bytes == 0
        prefill(source, 8, 20, step=2)
        copy(source, target, 8, 20, number=2)
        assert_decodes(target, 8, 20)
        assert_decodes(source, 7, 40)
    finally:
        source.close()
        target.close()


def test_a_sequence_that_was_released_on_the_target_is_not_taken(pair: Pair) -> None:
    source, target = pair
    prefill(source, 7, 40)
    release = make_plan(StepKind.RELEASE, 5, 1, releases=[7])
    expect_composed(target.stage.send(FrameKind.COMPOSE, release))
    with pytest.raises(StateLost, match="given up"):
        copy(source, target, 7, 40)
    assert target.kv_used_bytes == 0


def test_a_sequence_that_has_come_may_be_released_go_back_and_come_again(pair: Pair) -> None:
    source, target = pair
    prefill(source, 7, 40)
    copy(source, target, 7, 40)
    release = make_plan(StepKind.RELEASE, 5, 60, releases=[7])
    expect_composed(source.stage.send(FrameKind.COMPOSE, release))
    copy(target, source, 7, 40, number=2)
    expect_composed(target.stage.send(FrameKind.COMPOSE, release))
    copy(source, target, 7, 40, number=3)
    assert_decodes(target, 7, 40)


@pytest.mark.parametrize(
    ("sequence", "num_tokens", "error"),
    [(8, 40, StateLost), (7, 39, StateLost), (7, 0, InvalidRequest)],
)
def test_tokens_that_are_not_there_are_not_sent(
    pair: Pair, sequence: int, num_tokens: int, error: type[Exception]
) -> None:
    source, target = pair
    prefill(source, 7, 40)
    with pytest.raises(error, match=str(num_tokens)):
        copy(source, target, sequence, num_tokens)
    assert target.kv_used_bytes == 0


def test_a_source_that_has_begun_anew_sends_nothing(pair: Pair) -> None:
    source, target = pair
    prefill(source, 7, 40)
    order = source.order_to(target, 7, 40, source_epoch=EPOCH - 1)
    with pytest.raises(StateLost, match="begun anew"):
        send_pages(source.address, order, secret=None, timeout_s=WAIT_S)


def test_a_target_that_has_begun_anew_takes_nothing(pair: Pair) -> None:
    source, target = pair
    prefill(source, 7, 40)
    order = source.order_to(target, 7, 40, target_epoch=EPOCH - 1)
    with pytest.raises(PeerUnavailable):
        send_pages(source.address, order, secret=None, timeout_s=SHORT_S)
    assert target.kv_used_bytes == 0


def test_a_target_that_is_gone_is_an_error_that_names_it(pair: Pair) -> None:
    source, target = pair
    prefill(source, 7, 40)
    prefill(source, 8, 40, step=2)
    copy(source, target, 7, 40)
    order = source.order_to(target, 8, 40, number=2)
    target.close()
    with pytest.raises(PeerUnavailable):
        send_pages(source.address, order, secret=None, timeout_s=WAIT_S)
    assert_decodes(source, 8, 40)
