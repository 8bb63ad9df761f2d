"""A gateway without its doors: a real store, a real engine, and tiers that answer by the seed."""

import hashlib
import json
import os
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any, Self

from prometheus_client import CollectorRegistry

from glinthawk.core.dtype import DType
from glinthawk.core.geometry import KVGeometry
from glinthawk.core.step import SampledToken, SequenceStart, StepPlan, StepResult
from glinthawk.errors import GlinthawkError
from glinthawk.gateway.engine import Engine
from glinthawk.gateway.generation import Generation
from glinthawk.gateway.jobs.metrics import JobMetrics
from glinthawk.gateway.jobs.runner import JobRunner
from glinthawk.gateway.jobs.services import JobServices, JobSettings
from glinthawk.gateway.roster import WorkerEntry
from glinthawk.gateway.store.interface import Store
from glinthawk.gateway.store.records import (
    BatchRecord,
    BatchStatus,
    FilePurpose,
    LineRecord,
    LineResult,
)
from glinthawk.gateway.store.sql import SqlStore, open_store
from glinthawk.scheduler import Scheduler, SchedulerConfig
from glinthawk.telemetry.metrics import ServiceMetrics
from unit.gateway.factories import make_model

WAIT_S = 180.0
ENDPOINT = "/v1/completions"
RUN_SEED = 7
MAX_LINE_BYTES = 4096
GEOMETRY = KVGeometry(2, 4, 2, 32, DType.FLOAT16, (None, None))


def build_line(custom_id: str, **fields: Any) -> bytes:
    document = {
        "custom_id": custom_id,
        "method": "POST",
        "url": ENDPOINT,
        "body": {"prompt": custom_id, "max_tokens": 4},
    }
    return json.dumps(document | fields).encode()


def add_batch(store: Store, lines: Iterable[bytes], **fields: Any) -> BatchRecord:
    """Put a file and a batch over it into the store; it has a day's time."""
    file = store.add_file(
        (line + b"\n" for line in lines), purpose=FilePurpose.BATCH, filename="in.jsonl"
    )
    now = int(time.time())
    batch = BatchRecord(
        id="",
        endpoint=ENDPOINT,
        input_file_id=file.id,
        completion_window="24h",
        status=BatchStatus.VALIDATING,
        created_at=now,
        expires_at=now + 24 * 3600,
    )
    return store.create_batch(BatchRecord(**vars(batch) | fields))


def add_validated_batch(store: Store, num_lines: int, **fields: Any) -> BatchRecord:
    """Put a batch into the store whose lines, numbered from 1, are there."""
    batch = add_batch(store, [build_line(f"id-{n}") for n in range(1, num_lines + 1)])
    store.add_lines(batch.id, [LineRecord(n, f"id-{n}", n, 1) for n in range(1, num_lines + 1)])
    return store.update_batch(
        batch.id,
        only_from=(BatchStatus.VALIDATING,),
        **{"status": BatchStatus.IN_PROGRESS, "total": num_lines} | fields,
    )


def make_results(
    numbers: Iterable[int], *, is_error: bool = False, padding: int = 0
) -> list[LineResult]:
    return [
        LineResult(n, is_error, json.dumps({"line": n, "pad": "x" * padding}).encode() + b"\n")
        for n in numbers
    ]


def read_lines(store: Store, file_id: str | None) -> list[dict[str, Any]]:
    if file_id is None:
        return []
    with store.open_file(file_id) as file:
        return [json.loads(line) for line in file]


def read_answers(store: Store, batch: BatchRecord) -> dict[str, Any]:
    """Return the answers by custom_id, of both files; each stands there once."""
    lines = read_lines(store, batch.output_file_id) + read_lines(store, batch.error_file_id)
    counts = Counter(line["custom_id"] for line in lines if line["custom_id"] is not None)
    assert set(counts.values()) <= {1}
    return {line["custom_id"]: line for line in lines}


def read_texts(store: Store, batch: BatchRecord) -> dict[str, str]:
    lines = read_lines(store, batch.output_file_id)
    return {line["custom_id"]: line["response"]["body"]["choices"][0]["text"] for line in lines}


def await_status(
    store: Store, batch_id: str, statuses: Collection[BatchStatus] | None = None
) -> BatchRecord:
    """Wait until a batch is in one of some statuses, or final; return it."""
    deadline = time.monotonic() + WAIT_S
    while True:
        batch = store.get_batch(batch_id)
        if batch.status.is_final or (statuses is not None and batch.status in statuses):
            return batch
        assert time.monotonic() < deadline, f"still {batch.status} with {batch.counts}"
        time.sleep(0.01)


def await_true(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def find_validating() -> list[int]:
    """Return the processes that validate for this one."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            command = (path / "cmdline").read_bytes()
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError):
            continue
        if b"jobs.validate" in command and parent == os.getpid():
            found.append(int(path.name))
    return found


class SeededTiers:
    """Answers every step: token k of a sequence is a letter that its seed and k decide.

    step_s: how long a step takes. While `go` is cleared no step is answered; `pause_after`
    clears it once there are so many tokens.
    """

    def __init__(self, step_s: float = 0.0) -> None:
        self.go = threading.Event()
        self.go.set()
        self.engine: Engine | None = None
        self.num_sampled = 0
        self.pause_after: int | None = None
        self._step_s = step_s
        self._starts: dict[int, SequenceStart] = {}
        self._plans: queue.SimpleQueue[StepPlan | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._answer, daemon=True)
        self._thread.start()

    def send_step(self, plan: StepPlan, *, epoch: int, prefill_first: bool) -> None:
        self._plans.put(plan)

    def reset_worker(self, name: str, epoch: int, error: GlinthawkError) -> None:
        raise AssertionError(f"no step fails here: {error}")

    def resume(self) -> None:
        """Answer again, to the end."""
        self.pause_after = None
        self.go.set()

    def stop(self) -> None:
        self.resume()
        self._plans.put(None)
        self._thread.join()

    def _answer(self) -> None:
        while (plan := self._plans.get()) is not None:
            self.go.wait()
            time.sleep(self._step_s)
            for start in plan.registrations:
                self._starts[start.sequence] = start
            rows = [row for row in range(len(plan.sequences)) if plan.samples[row]]
            sampled = tuple(self._sample(plan, row) for row in rows)
            self.num_sampled += len(sampled)
            if self.pause_after is not None and self.num_sampled >= self.pause_after:
                self.go.clear()
            for sequence in plan.releases:
                self._starts.pop(sequence, None)
            assert self.engine is not None
            self.engine.take_result(StepResult(plan.lane, plan.step, sampled))

    def _sample(self, plan: StepPlan, row: int) -> SampledToken:
        start = self._starts[plan.sequences[row]]
        place = int(plan.starts[row] + plan.counts[row]) - start.prompt_tokens
        digest = hashlib.sha256(f"{start.sampling.seed} {place}".encode()).digest()
        return SampledToken(plan.sequences[row], ord("a") + digest[0] % 26)


def make_settings(**fields: Any) -> JobSettings:
    return JobSettings(**{"max_line_bytes": MAX_LINE_BYTES} | fields)


class Gateway:
    """Store, engine and runner in one place, from its making until `close`.

    days: how many the clock of jobs is ahead. is_attached: whether the engine is there from
    the start. store: instead of the one that is opened in the folder.
    """

    def __init__(
        self,
        folder: Path,
        *,
        step_s: float = 0.0,
        settings: JobSettings | None = None,
        is_attached: bool = True,
        store: SqlStore | None = None,
    ) -> None:
        self.registry = CollectorRegistry()
        self.days = 0
        self.store = store or open_store(folder, busy_timeout_s=0.1)
        self.tiers = SeededTiers(step_s)
        self.generation = Generation(make_model(200), run_seed=RUN_SEED)
        self.scheduler = Scheduler(SchedulerConfig(geometry=GEOMETRY, max_sequence_length=200))
        self.engine = Engine(
            self.scheduler,
            self.generation.context.tokenizer,
            carrier=self.tiers,
            on_done=self.generation.finish,
            metrics=ServiceMetrics(CollectorRegistry()),
        )
        self.tiers.engine = self.engine
        if is_attached:
            self.generation.attach(self.engine)
        entry = WorkerEntry("w", 400 * GEOMETRY.page_bytes, epoch=1, instance="one")
        self.engine.worker_joined(entry)
        self._thread = threading.Thread(target=self.engine.run, daemon=True)
        self._thread.start()
        self.runner = JobRunner(
            JobServices(self.store, self.generation, JobMetrics(self.registry), now=self._now),
            settings or make_settings(),
        )
        self.runner.start()

    def run(self, lines: Iterable[bytes], **fields: Any) -> BatchRecord:
        """Run a batch to its end."""
        batch = self.submit(lines, **fields)
        return await_status(self.store, batch.id)

    def submit(self, lines: Iterable[bytes], **fields: Any) -> BatchRecord:
        batch = add_batch(self.store, lines, **fields)
        self.runner.batch_created(batch.id)
        return batch

    def cancel(self, batch_id: str) -> BatchRecord:
        """Cancel a batch as a door does."""
        batch = self.store.update_batch(
            batch_id,
            only_from=(BatchStatus.VALIDATING, BatchStatus.IN_PROGRESS),
            status=BatchStatus.CANCELLING,
            cancelling_at=int(time.time()),
        )
        self.runner.batch_cancelled(batch_id)
        return batch

    def _now(self) -> float:
        return time.time() + self.days * 24 * 3600

    def close(self) -> None:
        self.runner.stop()
        self.tiers.resume()
        self.engine.stop()
        self._thread.join()
        self.tiers.stop()
        self.store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
