"""The operator's own figures, under glinthawk_operator_…"""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_BUCKETS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
_RESOURCE = ("namespace", "deployment")


class OperatorMetrics:
    """The figures of one operator, on a registry that is given."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self.reconciles = self._counter("reconciles", "Reconciles, by result.", ("result",))
        self.reconcile_seconds = self._histogram("reconcile_seconds", "Time of a reconcile.")
        self.queue_wait_seconds = self._histogram(
            "queue_wait_seconds", "Time that a resource was due before its reconcile began."
        )
        self.errors = self._counter("errors", "Errors, by kind.", ("kind",))
        self.api_requests = self._counter(
            "api_requests", "Requests of the API server.", ("verb", "kind", "code")
        )
        self.actions = self._counter("actions", "What was done, by kind.", ("action",))
        self.decisions = self._counter(
            "decisions", "Decisions that changed the number of workers.", (*_RESOURCE, "reason")
        )
        self.queue_depth = self._gauge("queue_depth", "Resources that are due.", ())
        self.is_leader = self._gauge("leader", "1 if this operator acts.", ())
        self.resources = self._gauge("resources", "Resources there are.", ())
        self.ready = self._gauge("ready", "1 if the resource is ready.", _RESOURCE)
        self.degraded = self._gauge("degraded", "1 if the resource is degraded.", _RESOURCE)
        self.wanted = self._gauge("wanted_workers", "Workers that are wanted.", _RESOURCE)
        self.needed = self._gauge(
            "needed_workers", "Workers that the formula asks for, unbounded.", _RESOURCE
        )
        self.ready_workers = self._gauge("ready_workers", "Workers that are ready.", _RESOURCE)
        self.draining = self._gauge("draining_workers", "Workers on their way out.", _RESOURCE)
        self.demanded = self._gauge(
            "kv_demanded_bytes", "KV demanded when it was last decided.", _RESOURCE
        )
        self.frozen = self._gauge(
            "scaling_frozen", "1 while there are no figures to scale by.", _RESOURCE
        )

    def forget(self, namespace: str, name: str) -> None:
        """Drop the figures of a resource that is gone."""
        gauges = (
            *(self.ready, self.degraded, self.wanted, self.needed, self.ready_workers),
            *(self.draining, self.demanded, self.frozen),
        )
        for gauge in gauges:
            try:
                gauge.remove(namespace, name)
            except KeyError:
                continue

    def _counter(self, name: str, text: str, labels: tuple[str, ...]) -> Counter:
        return Counter(f"glinthawk_operator_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str) -> Histogram:
        return Histogram(
            f"glinthawk_operator_{name}", text, registry=self.registry, buckets=_BUCKETS
        )

    def _gauge(self, name: str, text: str, labels: tuple[str, ...]) -> Gauge:
        return Gauge(f"glinthawk_operator_{name}", text, labels, registry=self.registry)
