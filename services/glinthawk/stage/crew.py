"""Who computes a stage's segments: the loop's own thread, or several threads of a CPU.

One segment runs at a time, on the loop's thread, unless more are asked for (`segments` of the
stage's configuration). Then several run beside each other, each on a thread (a hand) that computes
it from its first product to its last:

    loop --start--> hand 0 [ lane 0: norm, products, rope, ... ] --SegmentEnded--> loop
                    hand 1 [ lane 2: norm, products, rope, ... ]

The hands share the stage's threads; a segment that is alone in the stage gets all of them.
"""

import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from glinthawk.errors import GlinthawkError, InvariantBroken
from glinthawk.stage.device import set_threads
from glinthawk.stage.segments import Segments
from glinthawk.stage.work import Passage

Run = Callable[[Segments, Sequence[Passage]], None]


@dataclass(frozen=True)
class SegmentEnded:
    """A segment is through, or failed with `error`.

    hand: whose it was. busy_s: seconds that it took, as a share of the stage's threads.
    defect: what else ended it, which is the stage's end too.
    """

    hand: int
    passages: tuple[Passage, ...]
    elapsed_s: float
    busy_s: float
    error: GlinthawkError | None = None
    defect: Exception | None = None


@dataclass(frozen=True)
class _Job:
    passages: tuple[Passage, ...]
    num_threads: int


class Crew:
    """Runs segments, each on a hand of its own, and says when they ended.

    hands: what each hand computes with. A single one is the caller's own thread. run: what is
    done with a segment. post: takes `SegmentEnded`, from any thread.
    """

    def __init__(
        self,
        hands: Sequence[Segments],
        run: Run,
        post: Callable[[SegmentEnded], None],
        *,
        num_threads: int,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._hands = tuple(hands)
        self._run = run
        self._post = post
        self._num_threads = num_threads
        self._clock = clock
        self._free = list(range(len(hands)))
        self._jobs: list[queue.SimpleQueue[_Job | None]] = []
        self._threads: list[threading.Thread] = []

    @property
    def size(self) -> int:
        """Segments that can run at the same time."""
        return len(self._hands)

    @property
    def has_free(self) -> bool:
        """Whether a segment could start now."""
        return bool(self._free)

    @property
    def is_idle(self) -> bool:
        """Whether no segment runs."""
        return len(self._free) == len(self._hands)

    def start(self, passages: Sequence[Passage], *, num_lanes: int) -> None:
        """Run a segment on a free hand; num_lanes: lanes in the stage, which share its threads."""
        hand = self._free.pop()
        share = self._num_threads // max(1, min(len(self._hands), num_lanes))
        job = _Job(tuple(passages), max(1, share))
        if len(self._hands) == 1:
            self._post(self._perform(hand, job))
            return
        if not self._threads:
            self._open()
        self._jobs[hand].put(job)

    def release(self, hand: int) -> None:
        """Count a hand as free again; its `SegmentEnded` was taken."""
        self._free.append(hand)

    def close(self) -> None:
        """End the threads, each after the segment that it runs."""
        for jobs in self._jobs:
            jobs.put(None)
        for thread in self._threads:
            thread.join()

    def _open(self) -> None:
        for hand in range(len(self._hands)):
            jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
            thread = threading.Thread(
                target=self._serve, args=(hand, jobs), name=f"hand-{hand}", daemon=True
            )
            self._jobs.append(jobs)
            self._threads.append(thread)
            thread.start()

    def _serve(self, hand: int, jobs: "queue.SimpleQueue[_Job | None]") -> None:
        num_threads = 0
        with torch.inference_mode():
            while (job := jobs.get()) is not None:
                if job.num_threads != num_threads:
                    # torch counts threads by the thread that asks.
                    num_threads = job.num_threads
                    set_threads(num_threads)
                self._post(self._perform(hand, job))

    def _perform(self, hand: int, job: _Job) -> SegmentEnded:
        started = self._clock()
        error: GlinthawkError | None = None
        defect: Exception | None = None
        try:
            self._run(self._hands[hand], job.passages)
        except GlinthawkError as failure:
            error = failure
        except RuntimeError as failure:
            # torch has no other error: out of memory, above all.
            error = InvariantBroken(f"a segment failed: {failure}")
        except Exception as failure:  # noqa: BLE001 - the thread's boundary
            # The loop raises it: on a hand's thread nobody would hear of it.
            defect = failure
        elapsed = self._clock() - started
        share = 1.0 if self.size == 1 else min(1.0, job.num_threads / self._num_threads)
        return SegmentEnded(hand, job.passages, elapsed, elapsed * share, error, defect)
