"""One acts: whoever holds the Lease. The others watch, and take over when it is silent.

Acting twice would do no harm, for every write is idempotent; it would only be twice the writes.
"""

import threading
import time
from collections.abc import Callable
from typing import Any

from glinthawk_operator.cluster import Cluster
from glinthawk_operator.errors import ApiConflict, ApiError, ApiNotFound
from glinthawk_operator.logs import get_logger
from glinthawk_operator.reconcile.observed import parse_time

log = get_logger("leader")


class Leadership:
    """Holds a Lease, or waits for it.

    Args:
        cluster: the API server.
        name, namespace: of the Lease.
        holder: who this is.
        lease_s: silence after which another takes over.
        clock: seconds since 1970.
    """

    def __init__(
        self,
        cluster: Cluster,
        name: str,
        namespace: str,
        *,
        holder: str,
        lease_s: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._cluster = cluster
        self._name = name
        self._namespace = namespace
        self._holder = holder
        self._lease_s = lease_s
        self._clock = clock
        self._held_until = 0.0
        self._seen: tuple[str, float] = ("", 0.0)
        self._written: dict[str, Any] | None = None

    @property
    def is_leader(self) -> bool:
        """Whether this one may act now. It stops before another may begin."""
        return self._clock() < self._held_until

    def run(self, stop: threading.Event) -> None:
        """Hold or await the Lease until `stop`; then let it go."""
        while not stop.is_set():
            was = self.is_leader
            try:
                self.try_once()
            except ApiError as error:
                log.warning("lease_failed", error=str(error))
            if self.is_leader != was:
                log.info("leading" if self.is_leader else "standing_by", lease=self._name)
            stop.wait(self._lease_s / 3)
        self.release()

    def try_once(self) -> None:
        """Take or renew the Lease if it may be had.

        Raises:
            ApiError: the API server did not answer; what was held is held for its time.
        """
        now_s = self._clock()
        written, self._written = self._written, None
        try:
            if written is not None and self.is_leader and self._renew(written, now_s):
                return
            self._take(now_s)
        except ApiConflict:
            self._held_until = 0.0

    def _renew(self, written: dict[str, Any], now_s: float) -> bool:
        """Renew what was last written, unasked; return False if someone wrote since."""
        try:
            self._hold(self._cluster.replace(self._manifest(now_s, written)), now_s)
        except (ApiConflict, ApiNotFound):
            return False
        return True

    def _take(self, now_s: float) -> None:
        """Look at the Lease, and take it if it is ours, free or silent."""
        try:
            lease = self._cluster.get("Lease", self._name, self._namespace)
        except ApiNotFound:
            self._hold(self._cluster.create(self._manifest(now_s, None)), now_s)
            return
        if self._may_take(lease, now_s):
            self._hold(self._cluster.replace(self._manifest(now_s, lease)), now_s)
        else:
            self._held_until = 0.0

    def _hold(self, written: dict[str, Any], now_s: float) -> None:
        self._written = written
        self._held_until = now_s + self._lease_s * 2 / 3

    def release(self) -> None:
        """Let another take over at once."""
        if not self.is_leader:
            return
        self._held_until = 0.0
        try:
            lease = self._cluster.get("Lease", self._name, self._namespace)
            if lease["spec"].get("holderIdentity") == self._holder:
                lease["spec"]["holderIdentity"] = ""
                self._cluster.replace(lease)
        except ApiError as error:
            log.info("lease_not_released", error=str(error))

    def _may_take(self, lease: dict[str, Any], now_s: float) -> bool:
        """Tell whether the Lease is ours, free, or silent, by this machine's clock alone."""
        spec = lease.get("spec") or {}
        if spec.get("holderIdentity") in (None, "", self._holder):
            return True
        version = str(lease["metadata"]["resourceVersion"])
        if self._seen[0] != version:
            renewed_s = parse_time(spec.get("renewTime"))
            first = not self._seen[0]
            self._seen = (version, now_s)
            # At the first look an old time is believed, so that a restart does not wait.
            return first and renewed_s is not None and now_s - renewed_s > 4 * self._lease_s
        return now_s - self._seen[1] > self._lease_s

    def _manifest(self, now_s: float, before: dict[str, Any] | None) -> dict[str, Any]:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S.000000Z", time.gmtime(now_s))
        metadata = {"name": self._name, "namespace": self._namespace}
        acquired, transitions = stamp, 0
        if before is not None:
            metadata["resourceVersion"] = before["metadata"]["resourceVersion"]
            spec = before.get("spec") or {}
            transitions = int(spec.get("leaseTransitions") or 0)
            if spec.get("holderIdentity") == self._holder:
                acquired = spec.get("acquireTime") or stamp
            else:
                transitions += 1
        return {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": metadata,
            "spec": {
                "holderIdentity": self._holder,
                "leaseDurationSeconds": int(self._lease_s),
                "acquireTime": acquired,
                "renewTime": stamp,
                "leaseTransitions": transitions,
            },
        }
