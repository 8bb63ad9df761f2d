"""The HTTP API on a real socket, over a real engine, scheduler and store.

Only the tiers are a script: every sequence says the same, whatever its prompt.
"""

import queue
import re
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from glinthawk.core.dtype import DType
from glinthawk.core.geometry import KVGeometry
from glinthawk.core.ids import SequenceId
from glinthawk.core.sampling import SamplingParams
from glinthawk.core.step import SampledToken, SequenceStart, StepPlan, StepResult, TokenLogprobs
from glinthawk.errors import GlinthawkError
from glinthawk.gateway.api.accounts import Accounts
from glinthawk.gateway.api.services import ApiLimits, ApiServices
from glinthawk.gateway.engine import Engine
from glinthawk.gateway.generation import Generation
from glinthawk.gateway.http.app import build_app
from glinthawk.gateway.http.server import HttpServer
from glinthawk.gateway.jobs.metrics import JobMetrics
from glinthawk.gateway.jobs.runner import JobRunner
from glinthawk.gateway.jobs.services import JobServices, JobSettings
from glinthawk.gateway.keys import KeyRing, build_key_record
from glinthawk.gateway.roster import WorkerEntry
from glinthawk.gateway.store.interface import Store
from glinthawk.gateway.store.sql import open_store
from glinthawk.scheduler import Scheduler, SchedulerConfig
from glinthawk.telemetry.metrics import ServiceMetrics
from unit.gateway.factories import END, ByteTokenizer, make_model

GEOMETRY = KVGeometry(2, 4, 2, 32, DType.FLOAT16, (None, None))
MODELS = ("tiny", "org/tiny")
MAX_SEQUENCE_LENGTH = 400
WAIT_S = 120.0
CHAT = "/v1/chat/completions"
BODY: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}
LONG = BODY | {"max_tokens": 300, "ignore_eos": True}
LIMITS = ApiLimits(
    max_body_bytes=64 << 10,
    max_file_bytes=256 << 10,
    max_key_requests=50,
    max_key_tokens=100_000,
    max_key_batches=1000,
)


class ScriptedTiers:
    """Answers every step in a thread of its own: token k of a sequence is script[k].

    pace_s: how long a step takes. fail_at: the token in whose place a sequence breaks. While `go`
    is cleared no step is answered.
    """

    def __init__(self) -> None:
        self.go = threading.Event()
        self.go.set()
        self.script: list[int] = [*b"hello world", END]
        self.pace_s = 0.0
        self.fail_at: int | None = None
        self.engine: Engine | None = None
        self._plans: queue.SimpleQueue[StepPlan | None] = queue.SimpleQueue()
        self._starts: dict[int, SequenceStart] = {}
        self._thread = threading.Thread(target=self._run, daemon=True)

    def send_step(self, plan: StepPlan, *, epoch: int, prefill_first: bool) -> None:
        self._plans.put(plan)

    def reset_worker(self, name: str, epoch: int, error: GlinthawkError) -> None:
        raise AssertionError(f"no step fails here: {error}")

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self.go.set()
        self._plans.put(None)
        self._thread.join(WAIT_S)

    def _run(self) -> None:
        while (plan := self._plans.get()) is not None:
            time.sleep(self.pace_s)
            self.go.wait()
            assert self.engine is not None
            self.engine.take_result(self._answer(plan))

    def _answer(self, plan: StepPlan) -> StepResult:
        for start in plan.registrations:
            self._starts[start.sequence] = start
        sampled, scored = [], []
        for row, sequence in enumerate(plan.sequences.tolist()):
            first, end = int(plan.starts[row]), int(plan.starts[row] + plan.counts[row])
            start = self._starts[sequence]
            scored += score_prompt(start, first, end)
            if plan.samples[row]:
                sampled.append(self._sample(start, end - start.prompt_tokens))
        return StepResult(plan.lane, plan.step, tuple(sampled), tuple(scored))

    def _sample(self, start: SequenceStart, place: int) -> SampledToken:
        token = self.script[min(place, len(self.script) - 1)]
        error = "a logit is not finite" if place == self.fail_at else None
        logprobs = score(token, start.sampling.num_logprobs)
        return SampledToken(start.sequence, token, logprobs, error)


def score(token: int, num_logprobs: int | None) -> TokenLogprobs | None:
    if num_logprobs is None:
        return None
    top = ((token, -0.25), (ord("x"), -1.5), (ord("y"), -2.5))[:num_logprobs]
    return TokenLogprobs(token, -0.25, 1, top)


def score_prompt(
    start: SequenceStart, first: int, end: int
) -> list[tuple[SequenceId, int, TokenLogprobs]]:
    sampling: SamplingParams = start.sampling
    found = []
    for position in range(max(1, first), min(end, start.prompt_tokens)):
        logprobs = score(start.tokens[position], sampling.num_prompt_logprobs)
        if logprobs is not None:
            found.append((start.sequence, position, logprobs))
    return found


@dataclass
class RecordedJobs:
    """Whom the API tells of batches."""

    created: list[str] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)

    def batch_created(self, batch_id: str) -> None:
        self.created.append(batch_id)

    def batch_cancelled(self, batch_id: str) -> None:
        self.cancelled.append(batch_id)


class Descriptions:
    """What an application says of its answers; every answer in these tests must be said there."""

    def __init__(self, app: FastAPI) -> None:
        self._statuses: list[tuple[str, re.Pattern[str], set[int]]] = []
        for path, methods in app.openapi()["paths"].items():
            pattern = path.replace("{model}", ".+")
            pattern = re.compile(re.sub(r"\{[a-z_]+\}", "[^/]+", pattern))
            for method, operation in methods.items():
                statuses = {int(status) for status in operation["responses"]}
                self._statuses.append((method.upper(), pattern, statuses))

    def check(self, answer: httpx.Response) -> None:
        request = answer.request
        for method, pattern, statuses in self._statuses:
            if method == request.method and pattern.fullmatch(request.url.path):
                assert answer.status_code in statuses, f"{method} {request.url.path}"


@dataclass
class Served:
    """A gateway that answers, and what is behind it."""

    url: str
    http: httpx.Client
    tiers: ScriptedTiers
    engine: Engine
    scheduler: Scheduler
    generation: Generation
    store: Store
    jobs: RecordedJobs
    server: HttpServer
    app: FastAPI
    services: ApiServices
    accounts: Accounts

    @property
    def address(self) -> tuple[str, int]:
        return "127.0.0.1", self.server.port

    def is_idle(self) -> bool:
        """Say whether no sequence runs or waits; read from outside the engine's thread."""
        return not self.scheduler.has_work()


def wait_until(is_true: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not is_true():
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.005)


@contextmanager
def serve(
    data_dir: Path,
    *,
    keys: Mapping[str, str] | None = None,
    limits: ApiLimits = LIMITS,
    comment_every_s: float = 15.0,
    job_clock: Callable[[], float] | None = None,
    **tls: Any,
) -> Iterator[Served]:
    """Run a gateway on a free port of this machine. keys: names by key; None asks for none.
    job_clock: batches are run, and expire by it; None only records whom the API tells of them."""
    store = open_store(data_dir)
    for key, name in (keys or {}).items():
        store.add_key(build_key_record(name, key, now=0))
    registry = CollectorRegistry()
    scheduler = Scheduler(
        SchedulerConfig(geometry=GEOMETRY, max_sequence_length=MAX_SEQUENCE_LENGTH)
    )
    tiers = ScriptedTiers()
    generation = Generation(make_model(MAX_SEQUENCE_LENGTH), run_seed=7)
    engine = Engine(
        scheduler,
        ByteTokenizer(),
        carrier=tiers,
        on_done=generation.finish,
        metrics=ServiceMetrics(registry),
    )
    tiers.engine = engine
    generation.attach(engine)
    engine.worker_joined(WorkerEntry("w", 300 * GEOMETRY.page_bytes, epoch=1, instance="one"))
    jobs, runner = RecordedJobs(), None
    if job_clock is not None:
        runner = JobRunner(
            JobServices(store, generation, JobMetrics(registry), now=job_clock),
            JobSettings(limits.max_body_bytes, MODELS, read_ahead=8),
        )
    services = ApiServices(
        generation,
        store,
        runner or jobs,
        None if keys is None else KeyRing(store),
        limits,
        model_names=MODELS,
        registry=registry,
        comment_every_s=comment_every_s,
    )
    accounts = Accounts(limits)
    app = build_app(services, accounts)
    server = HttpServer(app, "127.0.0.1", 0, **tls)
    thread = threading.Thread(target=engine.run, daemon=True)
    tiers.start()
    thread.start()
    if runner is not None:
        runner.start()
    server.start()
    scheme = "https" if tls else "http"
    url = f"{scheme}://127.0.0.1:{server.port}"
    verify = ssl.create_default_context(cafile=tls["certificate"]) if tls else True
    try:
        hooks = {"response": [Descriptions(app).check]}
        with httpx.Client(base_url=url, timeout=WAIT_S, verify=verify, event_hooks=hooks) as http:
            yield Served(
                url=url,
                http=http,
                tiers=tiers,
                engine=engine,
                scheduler=scheduler,
                generation=generation,
                store=store,
                jobs=jobs,
                server=server,
                app=app,
                services=services,
                accounts=accounts,
            )
    finally:
        server.stop(1.0)
        if runner is not None:
            runner.stop()
        engine.stop()
        thread.join(WAIT_S)
        tiers.stop()
        store.close()
