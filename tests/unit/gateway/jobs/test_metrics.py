import pytest
from prometheus_client import CollectorRegistry

from glinthawk.gateway.jobs.job import JobProgress
from glinthawk.gateway.jobs.metrics import MOST_BATCHES, JobMetrics
from glinthawk.gateway.store.records import BatchStatus


def running(batch_id: str, *, eta_s: float | None = 8.0) -> JobProgress:
    return JobProgress(
        batch_id,
        BatchStatus.IN_PROGRESS,
        num_lines=10,
        num_done=4,
        tokens_per_s=25.0,
        eta_s=eta_s,
    )


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


def read(registry: CollectorRegistry, name: str) -> dict[str, float]:
    """Return the samples of a metric by their only label."""
    families = {family.name: family for family in registry.collect()}
    samples = families[f"glinthawk_{name}"].samples
    return {next(iter(sample.labels.values())): sample.value for sample in samples}


def test_a_running_batch_shows_its_rate_what_is_open_and_its_end(
    registry: CollectorRegistry,
) -> None:
    JobMetrics(registry).show_jobs([running("a")])
    assert read(registry, "job_tokens_per_second") == {"a": 25.0}
    assert read(registry, "job_open_lines") == {"a": 6.0}
    assert read(registry, "job_eta_seconds") == {"a": 8.0}


def test_an_end_that_cannot_be_told_is_not_shown(registry: CollectorRegistry) -> None:
    JobMetrics(registry).show_jobs([running("a", eta_s=None)])
    assert read(registry, "job_open_lines") == {"a": 6.0}
    assert read(registry, "job_eta_seconds") == {}


def test_a_batch_that_is_over_is_shown_no_more(registry: CollectorRegistry) -> None:
    metrics = JobMetrics(registry)
    metrics.show_jobs([running("a"), JobProgress("b", BatchStatus.VALIDATING)])
    metrics.show_jobs([JobProgress("b", BatchStatus.VALIDATING)])
    for name in ("job_tokens_per_second", "job_open_lines", "job_eta_seconds"):
        assert read(registry, name) == {}
    assert read(registry, "jobs")["validating"] == 1


def test_a_crowd_of_batches_makes_no_crowd_of_series(registry: CollectorRegistry) -> None:
    JobMetrics(registry).show_jobs([running(f"b{number}") for number in range(3 * MOST_BATCHES)])
    assert len(read(registry, "job_open_lines")) == MOST_BATCHES
    assert read(registry, "jobs")["in_progress"] == 3 * MOST_BATCHES
