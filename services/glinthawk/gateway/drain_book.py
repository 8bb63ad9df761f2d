"""Which workers drain, kept in the store: a gateway that starts again goes on with it.

A drain is of a process, not of a name: it has no effect on another process that joins under the
name. A worker that asked itself to end is not kept here, for it asks again. Times in the store are
of the wall clock, which outlasts the gateway; the engine is told seconds that are left.
"""

import threading
import time
from collections.abc import Callable

from glinthawk.gateway.roster import WorkerEntry
from glinthawk.gateway.store.interface import Store
from glinthawk.gateway.store.records import DrainRecord

KEPT_AFTER_S = 7 * 24 * 3600.0
"""How long after its deadline the drain of a worker that never came back is still known."""


class DrainBook:
    """The drains of one gateway. Any thread may call."""

    def __init__(self, store: Store, *, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._clock = clock
        self._lock = threading.Lock()
        self._drains = {drain.worker: drain for drain in store.list_drains()}
        for drain in list(self._drains.values()):
            if clock() - drain.until_ms / 1000 > KEPT_AFTER_S:
                self.forget(drain.worker)

    def note(self, worker: str, instance: str, deadline_s: float) -> None:
        """Keep that a worker drains from now on.

        Raises:
            StoreUnavailable: it cannot be kept; nothing changed.
        """
        drain = DrainRecord(worker, instance, round(1000 * (self._clock() + deadline_s)))
        with self._lock:
            self._store.put_drain(drain)
            self._drains[worker] = drain

    def forget(self, worker: str) -> None:
        """Keep no longer that a worker drains.

        Raises:
            StoreUnavailable: it is still kept; nothing changed.
        """
        with self._lock:
            if worker in self._drains:
                self._store.delete_drain(worker)
                del self._drains[worker]

    def seconds_left(self, entry: WorkerEntry) -> float | None:
        """Return how long a worker that has joined still drains, 0 when its time is over, None
        if it does not."""
        drain = self._drains.get(entry.name)
        if drain is None or drain.instance != entry.instance:
            # What is kept of an earlier process is of no effect on this one, and goes by its age:
            # whoever asks here must not wait for the store.
            return None
        return max(0.0, drain.until_ms / 1000 - self._clock())
