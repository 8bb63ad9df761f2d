"""What the engine knows of the attention workers: who is in use, who drains, and their epochs.

    joined --> ACTIVE --drain--> DRAINING --empty, or the deadline--> DRAINED
                  ^                  |                                   |
                  +--cancel_drain----+-----------------------------------+
    lost: its sequences are recomputed elsewhere; it may come back under a later epoch

It moves workers in and out of the scheduler. It knows no sockets and no clock of its own.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from glinthawk.errors import NotFound
from glinthawk.gateway.roster import WorkerEntry
from glinthawk.scheduler import Scheduler
from glinthawk.telemetry.logging import get_logger

log = get_logger("gateway.workers")

MOST_ABSENT = 64
"""Workers that are gone and still shown."""


class WorkerState(StrEnum):
    """How a worker stands. LOST: it is away, or what it held had to be dropped."""

    ACTIVE = "active"
    DRAINING = "draining"
    DRAINED = "drained"
    LOST = "lost"


@dataclass(frozen=True)
class WorkerFigures:
    """A worker as others see it. instance: of the process that has its name."""

    name: str
    state: WorkerState
    kv_used_bytes: int
    kv_capacity_bytes: int
    num_sequences: int
    instance: str = ""


@dataclass(frozen=True)
class EndedDrains:
    """may_end: workers that asked to end and may do so now. to_empty: workers that stay, and at
    the deadline still held pages, which nobody needs any more."""

    may_end: tuple[str, ...]
    to_empty: tuple[WorkerEntry, ...]


@dataclass
class _Record:
    """in_use: the scheduler has it. drain_until: when it drains, the time at which what still
    runs is recomputed elsewhere. is_drained: it is, or was, empty and gets nothing more.
    then_ends: it asked to end, and is to be told when it may."""

    entry: WorkerEntry
    is_present: bool = True
    in_use: bool = False
    drain_until: float | None = None
    is_drained: bool = False
    then_ends: bool = False

    @property
    def state(self) -> WorkerState:
        if self.is_drained:
            return WorkerState.DRAINED
        if not self.is_present:
            return WorkerState.LOST
        return WorkerState.ACTIVE if self.drain_until is None else WorkerState.DRAINING


class Workforce:
    """The workers of one engine; its thread owns it."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._records: dict[str, _Record] = {}

    def join(self, entry: WorkerEntry) -> None:
        """Take a worker into use, with an empty cache.

        One that drains goes on draining under a later epoch; another process of its name does
        not.

        Raises:
            InvalidRequest: its memory does not hold a page.
        """
        former = self._records.pop(entry.name, None)
        if former is not None:
            self._withdraw(former)
        record = self._records[entry.name] = _Record(entry, is_present=False)
        if former is not None and former.entry.instance == entry.instance:
            record.drain_until = former.drain_until
            record.is_drained = former.is_drained
            record.then_ends = former.then_ends
        if not record.is_drained:
            self._scheduler.add_worker(entry.name, entry.kv_bytes)
            self._scheduler.set_accepting(entry.name, record.drain_until is None)
            record.in_use = True
        record.is_present = True

    def lose(self, name: str) -> None:
        """A worker is gone, with what it held: its sequences wait again."""
        record = self._records.pop(name, None)
        if record is None:
            return
        self._records[name] = record  # the latest to go is the last to be forgotten
        self._withdraw(record)
        record.is_present = False
        absent = [name for name, item in self._records.items() if not item.is_present]
        for old in absent[: max(0, len(absent) - MOST_ABSENT)]:
            del self._records[old]

    def draining(self) -> Iterator[tuple[str, float]]:
        """Yield the workers that are being emptied, and until when."""
        for name, record in self._records.items():
            if record.in_use and record.drain_until is not None:
                yield name, record.drain_until

    def epoch_of(self, name: str) -> int:
        """Return the epoch under which a worker is in use."""
        return self._records[name].entry.epoch

    def drain(self, name: str, until: float, *, then_ends: bool = False) -> bool:
        """Place nothing more on a worker; what still runs there at `until` runs elsewhere.
        then_ends: it asked for it, and `settle` says when it may end; an earlier deadline stays.

        Returns whether it did not drain before.

        Raises:
            NotFound: there is no such worker.
        """
        record = self._find(name)
        former = record.drain_until
        record.drain_until = min(until, former) if then_ends and former is not None else until
        record.then_ends = record.then_ends or then_ends
        if record.in_use:
            self._scheduler.set_accepting(name, False)
        return former is None

    def cancel_drain(self, name: str) -> WorkerEntry | None:
        """Take a drain back; return the worker if it must come back under a later epoch first.

        Raises:
            NotFound: there is no such worker.
        """
        record = self._find(name)
        was_drained = record.is_drained
        record.drain_until = None
        record.is_drained = record.then_ends = False
        if record.in_use:
            self._scheduler.set_accepting(name, True)
            return None
        if not was_drained:
            return None
        record.is_present = False
        return record.entry

    def settle(self, now: float) -> EndedDrains:
        """End the drains that are over: the worker is empty, or its time is."""
        may_end: list[str] = []
        to_empty: list[WorkerEntry] = []
        for name, record in self._records.items():
            if record.drain_until is None or not record.is_present:
                continue
            is_idle = not record.in_use or self._scheduler.worker_load(name).is_idle
            if is_idle or now >= record.drain_until:
                num_lost = self._withdraw(record)
                if not record.is_drained:
                    log.info("worker_drained", worker=name, recomputed_sequences=num_lost)
                record.is_drained = True
                if record.then_ends:
                    record.then_ends = False
                    may_end.append(name)
                elif not is_idle:
                    to_empty.append(record.entry)
        return EndedDrains(tuple(may_end), tuple(to_empty))

    def sizes(self) -> list[int]:
        """Return the KV memory, in bytes, of each worker that is there."""
        return [item.entry.kv_bytes for item in self._records.values() if item.is_present]

    def figures(self) -> Iterator[WorkerFigures]:
        """Yield how each worker stands."""
        for name, record in self._records.items():
            if record.in_use:
                load = self._scheduler.worker_load(name)
                sizes = (load.kv_used_bytes, load.kv_capacity_bytes, load.num_sequences)
            else:
                sizes = (0, record.entry.kv_bytes if record.is_present else 0, 0)
            yield WorkerFigures(name, record.state, *sizes, record.entry.instance)

    def _withdraw(self, record: _Record) -> int:
        """Take a worker out of use; return how many sequences are computed again."""
        if not record.in_use:
            return 0
        record.in_use = False
        return len(self._scheduler.remove_worker(record.entry.name))

    def _find(self, name: str) -> _Record:
        record = self._records.get(name)
        if record is None:
            known = ", ".join(self._records) or "none"
            raise NotFound(f"there is no attention worker {name!r}; known are {known}")
        return record
