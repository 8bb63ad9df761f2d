"""Level 1, the gateway: admission, placement, lanes and steps. State in, plan out.

Knows no clock, network, torch or text. The engine drives one `Scheduler`:

    add_worker / remove_worker / set_accepting      membership
    add(group), abort(ids)                          requests
    plan() -> steps to send now, in this order      (sent steps are in flight)
    commit(result, finished) -> Committed           a step came back
    movable(name), start_move, end_move             a sequence's KV goes to another worker
    find_step(lane, step), worker_load(name)
    prefill_first, stats(), check_integrity()

Promises of the engine: the steps of one worker are sent, and composed by the worker, in the
order in which `plan` returned them; a step ends by `commit` exactly once, release steps too (their
result has no tokens), unless its worker is removed; K and V of a prefill step are in the worker
before a later step's fork is applied.

How choices share a prompt: the first choice prefills the whole prompt and samples its own
first token. Every other choice is a `Fork` at prompt - 1 tokens, and its first decode step
runs the prompt's last token, so it samples its own first token from the same distribution.
The fork and the registration ride on that decode step.

KV is counted in pages as the workers count it. A sequence holds ceil(t / page) pages; when a
step would not fit, the youngest idle sequences are set back (their pages released, their
tokens kept and prefilled again later), and they stand first in the queue.
"""

from glinthawk.scheduler.config import LaneTimings, SchedulerConfig, required_lanes
from glinthawk.scheduler.data import (
    Committed,
    Finished,
    FinishReason,
    Flow,
    Movable,
    MoveOrder,
    RequestClass,
    SchedulerStats,
    SequenceGroup,
    WorkerLoad,
)
from glinthawk.scheduler.lengths import LearnedLengths
from glinthawk.scheduler.node import ReadyItem, choose_segment
from glinthawk.scheduler.scheduler import Scheduler

__all__ = [
    "Committed",
    "FinishReason",
    "Finished",
    "Flow",
    "LaneTimings",
    "LearnedLengths",
    "Movable",
    "MoveOrder",
    "ReadyItem",
    "RequestClass",
    "Scheduler",
    "SchedulerConfig",
    "SchedulerStats",
    "SequenceGroup",
    "WorkerLoad",
    "choose_segment",
    "required_lanes",
]
