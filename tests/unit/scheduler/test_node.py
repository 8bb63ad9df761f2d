"""What a stage runs next."""

from glinthawk.core.ids import LaneId
from glinthawk.core.step import StepKind
from glinthawk.scheduler import ReadyItem, choose_segment


def item(
    lane: int, layer: int, rows: int = 4, kind: StepKind = StepKind.DECODE, order: int = 0
) -> ReadyItem:
    """Return a ready item."""
    return ReadyItem(kind, LaneId(lane), layer, rows, order or lane)


def lanes(chosen: tuple[ReadyItem, ...]) -> list[int]:
    """Return the lanes of a segment."""
    return [chosen_item.lane for chosen_item in chosen]


def test_an_idle_stage_has_nothing_to_run() -> None:
    assert choose_segment([], max_rows=8, prefill_first=True) == ()


def test_all_lanes_at_the_deepest_layer_are_merged_in_order() -> None:
    ready = [item(3, 5, order=9), item(1, 2), item(2, 5)]
    assert lanes(choose_segment(ready, max_rows=8, prefill_first=False)) == [2, 3]


def test_a_segment_stays_within_the_rows_of_the_stage() -> None:
    ready = [item(1, 5, rows=6), item(2, 5, rows=6), item(3, 5, rows=2)]
    assert lanes(choose_segment(ready, max_rows=8, prefill_first=False)) == [1, 3]


def test_a_lane_larger_than_the_buffer_is_not_left_waiting() -> None:
    assert lanes(choose_segment([item(1, 0, rows=20)], max_rows=8, prefill_first=False)) == [1]


def test_prefill_waits_for_decode_unless_lanes_are_short() -> None:
    ready = [item(1, 2), item(7, 0, rows=99, kind=StepKind.PREFILL)]
    assert lanes(choose_segment(ready, max_rows=8, prefill_first=False)) == [1]
    assert lanes(choose_segment(ready, max_rows=8, prefill_first=True)) == [7]


def test_prefill_fills_the_bubbles_of_decode() -> None:
    ready = [item(7, 0, kind=StepKind.PREFILL), item(8, 3, kind=StepKind.PREFILL)]
    assert lanes(choose_segment(ready, max_rows=8, prefill_first=False)) == [8]


def test_releases_never_share_a_segment_with_rows() -> None:
    ready = [item(1, 5), item(2, 5, rows=0, kind=StepKind.RELEASE), item(3, 5)]
    for prefill_first in (False, True):
        assert lanes(choose_segment(ready, max_rows=8, prefill_first=prefill_first)) == [2]
