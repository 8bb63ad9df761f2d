"""The operator's process: threads that reconcile, the lease, health and metrics.

kopf (main thread) --events--> index, queue --> worker threads --> reconciler
lease thread: says whether they may act;  resync thread: takes out of the index what is gone
"""

import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from glinthawk_operator.cluster import Cluster
from glinthawk_operator.errors import ApiUnavailable, OperatorError
from glinthawk_operator.index import NODE_KIND, ObjectIndex, ResourceKey
from glinthawk_operator.kinds import OWNED_KINDS
from glinthawk_operator.leader import Leadership
from glinthawk_operator.logs import get_logger
from glinthawk_operator.manifests.names import KIND
from glinthawk_operator.metrics import OperatorMetrics
from glinthawk_operator.queue import QueueSettings, WorkQueue
from glinthawk_operator.reconciler import Reconciler
from glinthawk_operator.resync import Resync
from glinthawk_operator.settings import Settings

log = get_logger("process")

JOIN_S = 15.0
START_SPREAD_S = 10.0
STANDBY_S = 1.0


@dataclass(frozen=True)
class Parts:
    """What the threads of an operator share."""

    settings: Settings
    metrics: OperatorMetrics
    index: ObjectIndex
    queue: WorkQueue[ResourceKey]
    reconciler: Reconciler
    leadership: Leadership
    resync: Resync
    random: Callable[[], float]

    def spread_s(self) -> float:
        """Return a time to wait where all resources come at once, as at each start.

        Together they would be a storm of requests.
        """
        return self.random() * min(START_SPREAD_S, 0.05 * len(self.index.keys()))


def build_parts(cluster: Cluster, settings: Settings, metrics: OperatorMetrics) -> Parts:
    """Wire an operator."""
    index, random = ObjectIndex(), Random().random
    queue = WorkQueue[ResourceKey](
        QueueSettings(),
        clock=time.monotonic,
        random=random,
        observe_wait=metrics.queue_wait_seconds.observe,
    )
    return Parts(
        settings,
        metrics,
        index,
        queue,
        Reconciler(
            cluster,
            index,
            settings,
            metrics,
            clock=time.time,
            random_bytes=secrets.token_bytes,
        ),
        Leadership(
            cluster,
            settings.lease_name,
            settings.pod_namespace or "default",
            holder=f"{settings.pod_name}-{secrets.token_hex(4)}",
            lease_s=settings.lease_seconds,
        ),
        Resync(
            cluster,
            index,
            kinds=(KIND, *OWNED_KINDS, *(() if settings.namespaces else (NODE_KIND,))),
            namespaces=settings.namespaces,
            enqueue=queue.add,
            clock=time.monotonic,
            random=random,
        ),
        random,
    )


class Workers:
    """The threads that take keys and reconcile, and the one that holds the lease."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._work, name=f"reconcile-{number}", daemon=True)
            for number in range(parts.settings.workers)
        ]
        self._helpers = [
            threading.Thread(target=run, args=(self._stop,), name=name, daemon=True)
            for name, run in (("lease", parts.leadership.run), ("resync", parts.resync.run))
        ]

    def start(self) -> None:
        """Begin to act, once the lease is held."""
        for thread in (*self._helpers, *self._threads):
            thread.start()

    def stop(self) -> None:
        """End; what is under way is ended first, then the lease is let go."""
        self._parts.queue.close()
        for thread in self._threads:
            thread.join(JOIN_S)
        self._stop.set()
        for thread in self._helpers:
            thread.join(JOIN_S)

    @property
    def is_alive(self) -> bool:
        """Whether every thread runs that should."""
        return self._stop.is_set() or all(
            thread.is_alive() for thread in (*self._threads, *self._helpers)
        )

    def _work(self) -> None:
        parts = self._parts
        while not self._stop.is_set():
            key = parts.queue.take(timeout_s=STANDBY_S)
            parts.metrics.is_leader.set(parts.leadership.is_leader)
            parts.metrics.queue_depth.set(parts.queue.depth)
            parts.metrics.resources.set(len(parts.index.keys()))
            if key is None:
                if self._is_closed():
                    return
                continue
            if not parts.leadership.is_leader:
                parts.queue.done(key, again_after_s=STANDBY_S + parts.spread_s())
                continue
            self._reconcile(key)

    def _is_closed(self) -> bool:
        return self._stop.is_set() or self._parts.queue.is_closed

    def _reconcile(self, key: ResourceKey) -> None:
        """Reconcile one resource; whatever goes wrong, it comes again later.

        This is the server boundary: an error of any kind is told and ends this turn only.
        """
        parts, started = self._parts, time.monotonic()
        result = "done"
        try:
            again_s = parts.reconciler.reconcile(key)
            parts.queue.done(key, again_after_s=again_s)
            if again_s is None:
                parts.queue.forget(key)
        except Exception as error:
            result = "failed"
            wait_s = error.retry_after_s if isinstance(error, ApiUnavailable) else None
            delay_s = parts.queue.failed(key, at_least_s=wait_s or 0.0)
            parts.metrics.errors.labels(type(error).__name__).inc()
            log.warning(
                "reconcile_failed",
                namespace=key.namespace,
                instance=key.instance,
                error=str(error) or repr(error),
                again_s=round(delay_s, 1),
                exc_info=not isinstance(error, OperatorError),
            )
        parts.metrics.reconciles.labels(result).inc()
        parts.metrics.reconcile_seconds.observe(time.monotonic() - started)
