import random
from collections.abc import Sequence

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from glinthawk.attention.frame import Frame
from glinthawk.attention.selection import Preference, is_kernel_built
from glinthawk.attention.worker import AttentionWorker
from glinthawk.core.dtype import DType
from glinthawk.core.step import StepKind
from glinthawk.errors import CapacityExceeded, InvalidRequest, StateLost
from glinthawk.telemetry.metrics import ServiceMetrics
from glinthawk.wire.frames import FrameHeader, FrameKind
from unit.attention.factories import (
    EPOCH,
    GEOMETRY,
    Recorder,
    Stage,
    expect_composed,
    expect_failed,
    expected_kv,
    expected_output,
    make_plan,
    make_worker,
)

DECODE, PREFILL, RELEASE = StepKind.DECODE, StepKind.PREFILL, StepKind.RELEASE
LAYERS = range(GEOMETRY.num_layers)

BACKENDS: list[Preference] = ["reference"]
if is_kernel_built():
    BACKENDS.append("kernel")


def tokens_of(sequence: int, count: int) -> list[tuple[int, int]]:
    return [(sequence, position) for position in range(count)]


def check(outputs: Sequence[np.ndarray], histories: Sequence[list[tuple[int, int]]]) -> None:
    for layer, output in enumerate(outputs):
        expected = np.stack([expected_output(history, layer) for history in histories])
        np.testing.assert_allclose(output, expected, atol=2e-5)


def pages_of(worker: AttentionWorker) -> float:
    return worker.stats().kv_used_bytes / GEOMETRY.page_bytes


@pytest.mark.parametrize("backend", BACKENDS)
def test_decode_attends_to_the_stored_prompt_and_to_its_own_earlier_tokens(
    backend: Preference,
) -> None:
    stage = Stage(make_worker(prefer=backend))
    stage.prefill(make_plan(PREFILL, 1, 1, [(7, 0, 30), (8, 0, 1), (9, 0, 16)]))
    for i in range(20):
        rows = [(9, 16 + i, 1), (7, 30 + i, 1), (8, 1 + i, 1)]
        outputs = stage.decode(make_plan(DECODE, 2, 2 + i, rows))
        check(outputs, [tokens_of(s, start + 1) for s, start, _ in rows])


@pytest.mark.parametrize("dtype", [DType.FLOAT16, DType.BFLOAT16])
def test_answers_come_in_the_format_of_the_frame(dtype: DType) -> None:
    stage = Stage(make_worker(), dtype=dtype)
    stage.prefill(make_plan(PREFILL, 1, 1, [(7, 0, 5)]))
    outputs = stage.decode(make_plan(DECODE, 2, 2, [(7, 5, 1)]))
    expected = np.stack([expected_output(tokens_of(7, 6), layer) for layer in LAYERS])
    np.testing.assert_allclose(np.concatenate(outputs), expected, atol=0.05)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_prompt_in_chunks_gets_back_its_earlier_rows_packed(backend: Preference) -> None:
    stage = Stage(make_worker(prefer=backend))
    stage.prefill(make_plan(PREFILL, 1, 1, [(7, 0, 21), (8, 0, 3)]))
    second = make_plan(PREFILL, 1, 2, [(8, 3, 4), (9, 0, 2), (7, 21, 20)])
    expect_composed(stage.send(FrameKind.COMPOSE, second))
    for layer in LAYERS:
        expected = expected_kv(tokens_of(8, 3) + tokens_of(7, 21), layer)
        np.testing.assert_array_equal(stage.fetch(second, layer), expected)
        stage.send(FrameKind.STORE, second, layer)
    outputs = stage.decode(make_plan(DECODE, 2, 3, [(7, 41, 1), (8, 7, 1)]))
    check(outputs, [tokens_of(7, 42), tokens_of(8, 8)])


def test_a_fetch_of_a_step_without_earlier_rows_is_answered_with_none() -> None:
    stage = Stage(make_worker())
    plan = make_plan(PREFILL, 1, 1, [(7, 0, 4)])
    stage.send(FrameKind.COMPOSE, plan)
    assert stage.fetch(plan, 0).shape[0] == 0


@pytest.mark.parametrize("fork_tokens", [16, 20, 5])
def test_forks_share_whole_pages_and_then_go_their_own_ways(fork_tokens: int) -> None:
    worker = make_worker()
    stage = Stage(worker)
    stage.prefill(make_plan(PREFILL, 1, 1, [(7, 0, fork_tokens + 1)]))
    rows = [(7, fork_tokens + 1, 1), (50, fork_tokens, 1), (51, fork_tokens, 1)]
    forks = [(7, 50, fork_tokens), (7, 51, fork_tokens)]
    outputs = stage.decode(make_plan(DECODE, 2, 2, rows, forks=forks))
    prompt = tokens_of(7, fork_tokens)
    histories = [
        tokens_of(7, fork_tokens + 2),
        [*prompt, (50, fork_tokens)],
        [*prompt, (51, fork_tokens)],
    ]
    check(outputs, histories)
    assert pages_of(worker) == fork_tokens // 16 + 3
    stage.send(FrameKind.COMPOSE, make_plan(RELEASE, 3, 3, releases=[7]))
    assert pages_of(worker) == fork_tokens // 16 + 2
    outputs = stage.decode(make_plan(DECODE, 2, 4, [(51, fork_tokens + 1, 1)]))
    check(outputs, [[*histories[2], (51, fork_tokens + 1)]])


def test_a_released_sequence_frees_its_pages_at_once_for_the_same_step() -> None:
    worker = make_worker(num_pages=2)
    stage = Stage(worker)
    stage.prefill(make_plan(PREFILL, 1, 1, [(7, 0, 30)]))
    stage.prefill(make_plan(PREFILL, 1, 2, [(8, 0, 20)], releases=[7]))
    outputs = stage.decode(make_plan(DECODE, 2, 3, [(8, 20, 1)]))
    check(outputs, [tokens_of(8, 21)])
    assert pages_of(worker) == 2


def test_a_refused_composition_names_the_sizes_and_changes_nothing() -> None:
    worker = make_worker(num_pages=4)
    stage = Stage(worker)
    stage.prefill(make_plan(PREFILL, 1, 1, [(7, 0, 33)]))
    too_large = make_plan(PREFILL, 3, 2, [(8, 0, 65)], releases=[7])
    answers = stage.send(FrameKind.COMPOSE, too_large)
    expect_failed(answers, CapacityExceeded, f"5 pages more ({5 * GEOMETRY.page_bytes} bytes)")
    expect_failed(stage.send(FrameKind.STORE, too_large, 0), StateLost, "not composed")
    assert pages_of(worker) == 3
    check(stage.decode(make_plan(DECODE, 2, 3, [(7, 33, 1)])), [tokens_of(7, 34)])


def test_sequences_that_are_not_here_are_reported_as_lost() -> None:
    stage = Stage(make_worker())
    for plan in (
        make_plan(DECODE, 1, 1, [(7, 5, 1)]),
        make_plan(DECODE, 1, 2, [(8, 5, 1)], forks=[(7, 8, 5)]),
        make_plan(PREFILL, 1, 3, [(7, 5, 5)]),
    ):
        expect_failed(stage.send(FrameKind.COMPOSE, plan), StateLost, "sequence 7")
        expect_failed(stage.send(FrameKind.ATTEND, plan), StateLost, "not composed")


def test_replayed_and_reordered_frames_leave_the_same_cache_and_outputs() -> None:
    plain, shaken = Stage(make_worker()), Stage(make_worker())
    chance = random.Random(5)
    prefill = make_plan(PREFILL, 1, 1, [(7, 0, 30), (8, 0, 9)])
    plain.prefill(prefill)
    expect_composed(shaken.send(FrameKind.COMPOSE, prefill))
    frames = [(FrameKind.STORE, layer) for layer in LAYERS] * 3 + [(FrameKind.COMPOSE, 0)] * 3
    chance.shuffle(frames)
    for kind, layer in frames:
        shaken.send(kind, prefill, layer)
    for i in range(12):
        rows = [(7, 30 + i, 1), (8, 9 + i, 1)]
        forks = [(7, 60, 30)] if i == 4 else []
        rows += [(60, 26 + i, 1)] if i >= 4 else []
        plan = make_plan(DECODE, 2, 2 + i, rows, forks=forks)
        expected = plain.decode(plan)
        expect_composed(shaken.send(FrameKind.COMPOSE, plan))
        order = list(LAYERS) * 2
        chance.shuffle(order)
        for layer in order:
            if chance.random() < 0.5:
                expect_composed(shaken.send(FrameKind.COMPOSE, plan))
            np.testing.assert_array_equal(shaken.attend(plan, layer), expected[layer])
    assert pages_of(plain.worker) == pages_of(shaken.worker)
    last = make_plan(PREFILL, 1, 99, [(7, 42, 1), (8, 21, 1), (60, 38, 1)])
    for stage in (plain, shaken):
        expect_composed(stage.send(FrameKind.COMPOSE, last))
        assert stage.worker.cache is not None
        stage.worker.cache.check_integrity()
    for layer in LAYERS:
        np.testing.assert_array_equal(plain.fetch(last, layer), shaken.fetch(last, layer))


def test_a_late_replay_of_an_earlier_composition_changes_nothing() -> None:
    worker = make_worker()
    stage = Stage(worker)
    first = make_plan(PREFILL, 1, 1, [(7, 0, 20)], releases=[8])
    stage.prefill(first)
    stage.prefill(make_plan(PREFILL, 1, 2, [(8, 0, 20)]))
    used = pages_of(worker)
    expect_composed(stage.send(FrameKind.COMPOSE, first))
    assert pages_of(worker) == used
    check(stage.decode(make_plan(DECODE, 2, 3, [(8, 20, 1)])), [tokens_of(8, 21)])


def test_a_fork_waits_for_rows_that_another_stage_has_still_under_way() -> None:
    worker = make_worker()
    first, last = Stage(worker), Stage(worker)
    prefill = make_plan(PREFILL, 1, 1, [(7, 0, 21)])
    first.prefill(prefill, layers=[0, 1])
    decode = make_plan(DECODE, 2, 2, [(7, 21, 1), (50, 20, 1)], forks=[(7, 50, 20)])
    other = make_plan(PREFILL, 1, 3, [(9, 0, 4)])
    assert first.send(FrameKind.COMPOSE, decode) == []
    assert first.send(FrameKind.ATTEND, decode, 0) == []
    assert first.send(FrameKind.COMPOSE, other) == []
    assert last.send(FrameKind.STORE, prefill, 2) == []
    kinds = [header.kind for header, _ in first.replies.take()]
    assert kinds == [FrameKind.COMPOSED, FrameKind.OUTPUT, FrameKind.COMPOSED]
    outputs = [first.attend(decode, layer) for layer in LAYERS]
    check(outputs, [tokens_of(7, 22), [*tokens_of(7, 20), (50, 20)]])


def test_rows_of_a_prompt_that_come_after_its_release_touch_nobody() -> None:
    worker = make_worker(num_pages=2)
    first, last = Stage(worker), Stage(worker)
    prefill = make_plan(PREFILL, 1, 1, [(7, 0, 16), (8, 0, 9)])
    first.prefill(prefill, layers=[0, 1])
    first.prefill(make_plan(PREFILL, 1, 2, [(9, 0, 16)], releases=[7]))
    assert last.send(FrameKind.STORE, prefill, 2) == []
    later = make_plan(PREFILL, 1, 3, [(9, 16, 1)], releases=[8])
    expect_composed(first.send(FrameKind.COMPOSE, later))
    for layer in LAYERS:
        expected = expected_kv(tokens_of(9, 16), layer)
        np.testing.assert_array_equal(first.fetch(later, layer), expected)


def test_attention_for_a_released_sequence_is_refused() -> None:
    stage = Stage(make_worker())
    stage.prefill(make_plan(PREFILL, 1, 1, [(7, 0, 16)]))
    plan = make_plan(DECODE, 2, 2, [(7, 16, 1)])
    stage.decode(plan)
    stage.send(FrameKind.COMPOSE, make_plan(RELEASE, 3, 3, releases=[7]))
    expect_failed(stage.send(FrameKind.ATTEND, plan, 0), StateLost, "were released")


def test_rewriting_a_shared_page_copies_it_first() -> None:
    stage = Stage(make_worker())
    stage.prefill(make_plan(PREFILL, 1, 1, [(7, 0, 20)]))
    fork = make_plan(DECODE, 2, 2, [(50, 16, 1)], forks=[(7, 50, 16)])
    stage.decode(fork)
    stage.names = {50: 777}
    stage.prefill(make_plan(PREFILL, 1, 3, [(50, 0, 16)]))
    stage.names = {}
    check(stage.decode(make_plan(DECODE, 2, 4, [(7, 20, 1)])), [tokens_of(7, 21)])
    history = [*tokens_of(777, 16), (50, 16), (50, 17)]
    check(stage.decode(make_plan(DECODE, 2, 5, [(50, 17, 1)])), [history])


def test_frames_of_a_past_epoch_are_dropped_and_counted() -> None:
    metrics = ServiceMetrics(CollectorRegistry())
    worker = make_worker(metrics=metrics)
    stage = Stage(worker)
    finished: list[int] = []
    frame = stage.frame(FrameKind.COMPOSE, make_plan(PREFILL, 1, 1, [(7, 0, 4)]), epoch=EPOCH - 1)
    worker.handle(Frame(frame.header, frame.payload, stage.replies, lambda: finished.append(1)))
    assert stage.replies.take() == []
    assert finished == [1]
    assert worker.stats().num_dropped == 1
    assert pages_of(worker) == 0


def test_a_new_epoch_forgets_sequences_and_steps_and_frames_ahead_of_it_wait() -> None:
    worker = make_worker()
    stage = Stage(worker)
    old = make_plan(PREFILL, 1, 1, [(7, 0, 20)])
    stage.prefill(old)
    new = make_plan(PREFILL, 1, 1, [(7, 0, 4)])
    assert stage.send(FrameKind.COMPOSE, new, epoch=EPOCH + 1) == []
    worker.begin(EPOCH + 1, GEOMETRY)
    expect_composed(stage.replies.take())
    assert pages_of(worker) == 1
    worker.begin(EPOCH + 1, GEOMETRY)
    assert pages_of(worker) == 1


def test_frames_before_the_first_view_wait_for_it() -> None:
    worker = make_worker(begin=False)
    stage = Stage(worker)
    plan = make_plan(PREFILL, 1, 1, [(7, 0, 4)])
    assert stage.send(FrameKind.COMPOSE, plan) == []
    worker.begin(EPOCH, GEOMETRY)
    expect_composed(stage.replies.take())


def test_a_later_gateway_with_a_lower_epoch_is_served() -> None:
    worker = make_worker()
    Stage(worker).prefill(make_plan(PREFILL, 1, 5, [(7, 0, 4)]))
    worker.forget()
    assert worker.stats().kv_used_bytes == 0
    worker.begin(1, GEOMETRY)
    stage = Stage(worker)
    expect_composed(stage.send(FrameKind.COMPOSE, make_plan(PREFILL, 1, 1, [(7, 0, 4)]), epoch=1))


def test_memory_below_one_page_is_refused_with_both_sizes() -> None:
    worker = make_worker(num_pages=0, begin=False)
    with pytest.raises(CapacityExceeded, match=f"0 bytes .* {GEOMETRY.page_bytes} bytes"):
        worker.begin(EPOCH, GEOMETRY)


def broken(frame: Frame, **changes: int | DType | None) -> FrameHeader:
    fields = {
        name: getattr(frame.header, name)
        for name in ("kind", "epoch", "lane", "step", "layer", "rows", "dtype")
    }
    return FrameHeader(**{**fields, **changes})


@pytest.mark.parametrize(
    ("kind", "changes", "match"),
    [
        (FrameKind.ATTEND, {"rows": 2}, "2 rows"),
        (FrameKind.ATTEND, {"layer": 3}, "layer 3"),
        (FrameKind.ATTEND, {"dtype": None}, "no dtype"),
        (FrameKind.ATTEND, {"dtype": DType.FLOAT16}, "bytes"),
        (FrameKind.ATTEND, {"kind": FrameKind.STORE}, "decode step"),
        (FrameKind.ATTEND, {"kind": FrameKind.STEP}, "no STEP frames"),
        (FrameKind.COMPOSE, {"rows": 2, "step": 9}, "2 rows"),
    ],
)
def test_frames_that_contradict_their_step_are_refused_and_harm_nothing(
    kind: FrameKind, changes: dict[str, int | DType | None], match: str
) -> None:
    stage = Stage(make_worker())
    stage.prefill(make_plan(PREFILL, 1, 1, [(7, 0, 16)]))
    plan = make_plan(DECODE, 2, 2, [(7, 16, 1)])
    expect_composed(stage.send(FrameKind.COMPOSE, plan))
    frame = stage.frame(kind, plan)
    stage.worker.handle(Frame(broken(frame, **changes), frame.payload, stage.replies))
    expect_failed(stage.replies.take(), InvalidRequest, match)
    check([stage.attend(plan, layer) for layer in LAYERS], [tokens_of(7, 17)])


def test_a_composition_for_another_worker_is_refused() -> None:
    stage = Stage(make_worker())
    plan = make_plan(PREFILL, 1, 1, [(7, 0, 4)], worker="worker-1")
    expect_failed(stage.send(FrameKind.COMPOSE, plan), InvalidRequest, "worker-1")


def test_random_bytes_as_compositions_never_break_the_worker() -> None:
    worker = make_worker()
    replies = Recorder()
    rng = np.random.default_rng(0)
    good = Stage(worker).frame(FrameKind.COMPOSE, make_plan(PREFILL, 1, 1, [(7, 0, 4)]))
    for _ in range(2000):
        payload = bytearray(good.payload)
        for place in rng.integers(0, len(payload), 3).tolist():
            payload[place] = int(rng.integers(256))
        worker.handle(Frame(good.header, memoryview(payload), replies))
    kinds = {header.kind for header, _ in replies.take()}
    assert kinds <= {FrameKind.COMPOSED, FrameKind.FAILED}
    assert worker.cache is not None
    worker.cache.check_integrity()


def test_steps_of_many_lanes_and_sequences_keep_their_books() -> None:
    """Random steps as a gateway makes them; every output is checked."""
    chance = random.Random(11)
    stage = Stage(make_worker(num_pages=40))
    lengths: dict[int, int] = {}
    next_sequence = 100
    for step in range(1, 150):
        releases = [s for s in lengths if chance.random() < 0.05]
        for sequence in releases:
            del lengths[sequence]
        if len(lengths) < 5 and chance.random() < 0.6:
            count = chance.randint(1, 40)
            rows = [(next_sequence, 0, count)]
            plan = make_plan(PREFILL, 1 + step % 2, step, rows, releases=releases)
            stage.prefill(plan)
            lengths[next_sequence] = count
            next_sequence += 1
        elif chosen := [s for s in lengths if chance.random() < 0.7]:
            rows = [(s, lengths[s], 1) for s in chosen]
            plan = make_plan(DECODE, 3 + step % 2, step, rows, releases=releases)
            outputs = stage.decode(plan)
            for sequence in chosen:
                lengths[sequence] += 1
            check(outputs, [tokens_of(s, lengths[s]) for s in chosen])
        else:
            plan = make_plan(RELEASE, 5, step, releases=releases)
            expect_composed(stage.send(FrameKind.COMPOSE, plan))
        cache = stage.worker.cache
        assert cache is not None
        cache.check_integrity()
        expected = sum(GEOMETRY.num_pages(length) for length in lengths.values())
        assert pages_of(stage.worker) == expected
