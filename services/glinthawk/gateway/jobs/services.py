"""What jobs work with: their collaborators and their bounds, frozen."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from glinthawk.gateway.generation import Generation
from glinthawk.gateway.jobs.metrics import JobMetrics
from glinthawk.gateway.store.interface import Store


@dataclass(frozen=True)
class JobServices:
    """clock: monotonic seconds. now: seconds since 1970."""

    store: Store
    generation: Generation
    metrics: JobMetrics
    clock: Callable[[], float] = time.monotonic
    now: Callable[[], float] = time.time


@dataclass(frozen=True)
class JobSettings:
    """max_line_bytes: of an input line; a longer one is refused. model_names: under which the
    model is served; none lets every name pass. read_ahead: sequences, of all jobs, that are
    begun and whose answers are not durable yet. stuck_after_s: so long without a move, and what
    prepares or finishes a batch counts as stuck."""

    max_line_bytes: int
    model_names: tuple[str, ...] = ()
    read_ahead: int = 2048
    stuck_after_s: float = 600.0
