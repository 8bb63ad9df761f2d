"""The figures of jobs, on the gateway's registry."""

from prometheus_client import CollectorRegistry, Counter, Gauge

from glinthawk.gateway.store.records import BatchStatus

COMPLETED = "completed"
FAILED = "failed"


class JobMetrics:
    """See the names below; they appear under ``glinthawk_…``."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._lines = Counter(
            "glinthawk_job_lines",
            "Lines of batches whose answer is durable.",
            ("outcome",),
            registry=registry,
        )
        self._jobs = Gauge(
            "glinthawk_jobs", "Batches that are not final.", ("status",), registry=registry
        )
        self._failures = Counter(
            "glinthawk_job_failures",
            "Attempts to prepare or finish a batch that failed or hung; each is made again.",
            registry=registry,
        )
        self._stuck = Gauge(
            "glinthawk_jobs_stuck",
            "Batches that do not get on for a reason of the gateway's own.",
            registry=registry,
        )
        for outcome in (COMPLETED, FAILED):
            self._lines.labels(outcome)

    def count_lines(self, *, num_completed: int, num_failed: int) -> None:
        """Count answers that were committed."""
        self._lines.labels(COMPLETED).inc(num_completed)
        self._lines.labels(FAILED).inc(num_failed)

    def count_failure(self) -> None:
        """Count an attempt that failed or hung."""
        self._failures.inc()

    def show_jobs(self, statuses: list[BatchStatus], *, num_stuck: int) -> None:
        """Show how many batches stand in each status; of the final ones none are counted."""
        self._stuck.set(num_stuck)
        for status in BatchStatus:
            if not status.is_final:
                self._jobs.labels(str(status)).set(statuses.count(status))
