"""How much KV memory workers have and had, for who asks whether a request can ever be held.

A request that no worker there could hold is refused, unless one was there within a day that
could: it may come back, so the request waits for it. That holds over the end of the gateway, for
workers come back one by one after it, and the smallest may be the first. For the same reason
nothing is refused for its size until the first has been there for a moment.
"""

import threading
import time
from collections.abc import Callable, Iterable, Mapping

from glinthawk.errors import StoreUnavailable
from glinthawk.gateway.store.interface import Store
from glinthawk.gateway.store.records import WorkerSize
from glinthawk.telemetry.logging import get_logger

log = get_logger("gateway.worker_sizes")

COUNTED_S = 24 * 3600.0
"""How long the size of a worker that is gone counts."""

SETTLE_S = 30.0
"""How long the first worker is waited for the others with."""

KEEP_EVERY_S = 900.0
"""How far the store may be behind about when a size was last there."""

_LOOK_EVERY_S = 1.0
_AGAIN_S = 30.0


class WorkerSizes:
    """Sizes, and when a worker of each was last there. Any thread may call; nobody waits.

    seen: seconds since 1970, by bytes of KV memory. settle_s: so long after the first worker of
    this life the largest is not known yet. clock: seconds since 1970.
    """

    def __init__(
        self,
        seen: Mapping[int, float] | None = None,
        *,
        settle_s: float = 0.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._settle_s = settle_s
        self._settled_at: float | None = None
        self._clock = clock
        self._lock = threading.Lock()
        self._seen = dict(seen or {})

    def note(self, kv_bytes: Iterable[int]) -> None:
        """Take in the sizes of the workers that are there now."""
        now = self._clock()
        present = dict.fromkeys(kv_bytes, now)
        with self._lock:
            self._seen.update(present)
            if present and self._settled_at is None:
                self._settled_at = now + self._settle_s

    def largest(self) -> int | None:
        """Return the largest size that counts, in bytes; None while it is not known."""
        settled_at = self._settled_at
        if settled_at is None or self._clock() < settled_at:
            return None
        return max(self.seen(), default=0)

    def seen(self) -> dict[int, float]:
        """Return the sizes that count and when they were last there, but for those of which a
        larger one was there as lately."""
        latest = self._clock() - COUNTED_S
        counting: dict[int, float] = {}
        with self._lock:
            for kv_bytes, seen in sorted(self._seen.items(), reverse=True):
                if seen > latest:
                    counting[kv_bytes] = latest = seen
            self._seen = dict(counting)
        return counting


class SizeBook:
    """Keeps sizes in the store, by a thread of its own, from `start` to `stop`.

    Raises:
        StoreUnavailable: what was kept cannot be read.
    """

    def __init__(self, store: Store, *, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        kept = {size.kv_bytes: float(size.seen_at) for size in store.list_worker_sizes()}
        self.sizes = WorkerSizes(kept, settle_s=SETTLE_S, clock=clock)
        self._kept: Mapping[int, float] = self.sizes.seen()
        self._is_store_away = False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="worker-sizes", daemon=True)

    def start(self) -> None:
        """Keep what comes from now on."""
        self._thread.start()

    def stop(self) -> None:
        """End soon; nothing is waited for."""
        self._ended.set()

    def keep(self) -> None:
        """Put the sizes into the store, unless it has them.

        Raises:
            StoreUnavailable: it is as it was.
        """
        seen = self.sizes.seen()
        if self._is_new(seen):
            self._store.keep_worker_sizes([WorkerSize(size, int(at)) for size, at in seen.items()])
            self._kept = seen

    def _is_new(self, seen: Mapping[int, float]) -> bool:
        return seen.keys() != self._kept.keys() or any(
            at - self._kept[size] >= KEEP_EVERY_S for size, at in seen.items()
        )

    def _run(self) -> None:
        wait_s = _LOOK_EVERY_S
        while not self._ended.wait(wait_s):
            try:
                self.keep()
            except StoreUnavailable as error:
                if not self._is_store_away:
                    log.warning("worker_sizes_not_kept", reason=str(error))
                self._is_store_away, wait_s = True, _AGAIN_S
            else:
                self._is_store_away, wait_s = False, _LOOK_EVERY_S
