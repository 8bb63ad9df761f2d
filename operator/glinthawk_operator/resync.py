"""Takes out of the index what is gone though no watch said so.

A watch that must begin anew, as after the API server was restarted, lists what is there; what went
away in between, it does not tell. So after each new list, and now and then without one, the kind
is compared with what the API server has.
"""

import threading
from collections.abc import Callable, Sequence

from glinthawk_operator.cluster import Cluster
from glinthawk_operator.errors import ApiError
from glinthawk_operator.index import NODE_KIND, ObjectIndex, ResourceKey
from glinthawk_operator.logs import get_logger
from glinthawk_operator.manifests.names import KIND, MANAGED_SELECTOR

log = get_logger("resync")

EVERY_S = 600.0
SETTLE_S = 2.0
"""From the first object of a new list until it is taken to be whole."""

AGAIN_S = 15.0
LOOK_EVERY_S = 1.0


class Resync:
    """See the module. `note_list` may be called by any thread, the rest by one.

    Args:
        cluster, index: what is compared.
        kinds: that the index has by watches.
        namespaces: that are watched; none: all.
        enqueue: told whose objects were gone.
        clock: seconds that only grow.
        random: returns a number from 0 up to 1; operators that start together list apart.
    """

    def __init__(
        self,
        cluster: Cluster,
        index: ObjectIndex,
        *,
        kinds: Sequence[str],
        namespaces: Sequence[str],
        enqueue: Callable[[ResourceKey], None],
        clock: Callable[[], float],
        random: Callable[[], float],
    ) -> None:
        self._cluster = cluster
        self._index = index
        self._namespaces: tuple[str | None, ...] = tuple(namespaces) or (None,)
        self._enqueue = enqueue
        self._clock = clock
        self._random = random
        self._lock = threading.Lock()
        self._due = {kind: self._next() for kind in kinds}

    def note_list(self, kind: str) -> None:
        """A watch of a kind lists anew: compare soon."""
        with self._lock:
            self._due[kind] = min(self._due[kind], self._clock() + SETTLE_S)

    def run(self, stop: threading.Event) -> None:
        """Compare what is due until `stop`."""
        while not stop.wait(LOOK_EVERY_S):
            self.compare_due()

    def compare_due(self) -> None:
        """Compare the kinds that are due."""
        with self._lock:
            now_s = self._clock()
            kinds = [kind for kind, due_s in self._due.items() if due_s <= now_s]
            # Before it is asked: a list that begins meanwhile counts.
            self._due |= {kind: self._next() for kind in kinds}
        for kind in kinds:
            try:
                self._compare(kind)
            except ApiError as error:
                log.warning("resync_failed", kind=kind, error=str(error))
                with self._lock:
                    self._due[kind] = min(self._due[kind], self._clock() + AGAIN_S)

    def _compare(self, kind: str) -> None:
        selector = None if kind in (NODE_KIND, KIND) else MANAGED_SELECTOR
        for namespace in (None,) if kind == NODE_KIND else self._namespaces:
            uids, version = self._cluster.list_uids(kind, namespace, label_selector=selector)
            for key in self._index.sweep(kind, uids, version, namespace):
                log.info("was_gone", kind=kind, namespace=key.namespace, instance=key.instance)
                self._enqueue(key)

    def _next(self) -> float:
        return self._clock() + EVERY_S * (1 - self._random() / 2)
