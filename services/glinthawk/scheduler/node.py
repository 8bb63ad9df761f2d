"""Level 2, the stage: which ready work runs next. Pure; the stage owns queues and clock.

A segment costs nearly the same for 1 row and for 100, because the weights are read either way.
So all lanes that are ready at the chosen layer run as one segment, up to the stage's buffers.
Deepest layer first: what is nearest to its end frees its lane soonest.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from glinthawk.core.ids import LaneId
from glinthawk.core.step import StepKind


@dataclass(frozen=True)
class ReadyItem:
    """Rows of one lane that can run at `layer` now. `order` rises with the time they became
    ready, so that equals are served first come, first served."""

    kind: StepKind
    lane: LaneId
    layer: int
    rows: int
    order: int


def choose_segment(
    ready: Iterable[ReadyItem], *, max_rows: int, prefill_first: bool
) -> tuple[ReadyItem, ...]:
    """Return the items to run as one segment, all of one kind at one layer; () when idle.

    `prefill_first` is the gateway's hint (`Scheduler.prefill_first`). Releases have no rows:
    they go first, by themselves. A prefill item runs alone. Decode items of the deepest layer
    are merged in order while they fit `max_rows`; the first is taken even if it alone is
    larger.
    """
    releases: list[ReadyItem] = []
    prefills: list[ReadyItem] = []
    decodes: list[ReadyItem] = []
    queues = {
        StepKind.RELEASE: releases,
        StepKind.PREFILL: prefills,
        StepKind.DECODE: decodes,
    }
    for item in ready:
        queues[item.kind].append(item)
    if releases:
        return tuple(releases)
    if prefills and (prefill_first or not decodes):
        return (min(prefills, key=lambda item: (-item.layer, item.order)),)
    if not decodes:
        return ()
    layer = max(item.layer for item in decodes)
    chosen: list[ReadyItem] = []
    rows = 0
    for item in sorted((i for i in decodes if i.layer == layer), key=lambda item: item.order):
        if not chosen or rows + item.rows <= max_rows:
            chosen.append(item)
            rows += item.rows
    return tuple(chosen)
