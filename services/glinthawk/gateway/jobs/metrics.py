"""The figures of jobs, on the gateway's registry."""

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge

from glinthawk.gateway.jobs.job import JobProgress
from glinthawk.gateway.store.records import BatchStatus

COMPLETED = "completed"
FAILED = "failed"

MOST_BATCHES = 50
"""Batches that are shown each on its own; a figure of a monitoring system should not grow with
the work that users leave."""


class JobMetrics:
    """See the names below; they appear under ``glinthawk_…``."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
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
        self._rates = self._by_batch("job_tokens_per_second", "Tokens in and out of a batch.")
        self._open = self._by_batch("job_open_lines", "Lines of a batch without an answer.")
        self._left = self._by_batch(
            "job_eta_seconds", "Seconds until a batch is over; absent while it cannot be told."
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

    def show_jobs(self, jobs: Sequence[JobProgress]) -> None:
        """Show how many batches stand in each status, and how the first of them advance; of the
        final ones none are counted."""
        statuses = [job.status for job in jobs]
        self._stuck.set(sum(job.problem is not None for job in jobs))
        for status in BatchStatus:
            if not status.is_final:
                self._jobs.labels(str(status)).set(statuses.count(status))
        running = [job for job in jobs if job.status is BatchStatus.IN_PROGRESS][:MOST_BATCHES]
        for gauge in (self._rates, self._open, self._left):
            gauge.clear()
        for job in running:
            self._rates.labels(job.batch_id).set(job.tokens_per_s)
            self._open.labels(job.batch_id).set(job.num_lines - job.num_done)
            if job.eta_s is not None:
                self._left.labels(job.batch_id).set(job.eta_s)

    def _by_batch(self, name: str, text: str) -> Gauge:
        return Gauge(f"glinthawk_{name}", text, ("batch",), registry=self._registry)
