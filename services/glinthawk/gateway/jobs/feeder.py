"""Lines to the engine, and their answers to the store: so many ahead, shared, exactly once.

    store --next_lines--> job.waiting --shares--> Generation --completions--> pending --> store
                                      `-- at most `read_ahead` sequences from here to there --'

What is counted against `read_ahead` is given back only when its answer is durable. So a store
that cannot be written stops the feeding by itself, and what waits for it is bounded.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from glinthawk.errors import CapacityExceeded, GlinthawkError, PeerUnavailable, StateLost
from glinthawk.gateway.engine import Completion
from glinthawk.gateway.jobs.job import Job, OpenLine, parse_content, read_line
from glinthawk.gateway.jobs.patience import Patience
from glinthawk.gateway.jobs.results import build_answer, build_failure
from glinthawk.gateway.jobs.services import JobServices, JobSettings
from glinthawk.gateway.jobs.shares import FairShares, weigh
from glinthawk.gateway.requests import ParsedRequest
from glinthawk.gateway.store.records import LineRecord, LineResult
from glinthawk.scheduler import Flow, LearnedLengths
from glinthawk.telemetry.logging import get_logger

log = get_logger("gateway.jobs")

FEED_LINES = 64
"""Lines that are begun in one go, before answers are looked at again."""

FETCH_LINES = 256
COMMIT_RESULTS = 256
COMMIT_SHARE = 8
COMMIT_EVERY_S = 0.2
"""Answers are committed when there are so many, when they are such a part of what is read ahead,
or after that time."""

READ_AGAIN_S = 5.0
BEGIN_AGAIN_S = 1.0
"""After an input that could not be read, and after the engine had no place for a line."""

_FOR_LATER = (PeerUnavailable, CapacityExceeded, StateLost)
"""Errors that are no answer: the same line may have one later."""

JOBS_WEIGHT = 1.0
"""Weight of all jobs together beside the callers who wait, however many jobs there are and
whatever their priorities: these only share it out."""

_BYTES_PER_TOKEN = 4


@dataclass
class _Pending:
    """Answers that are not durable yet. since_s: when the first of them came."""

    results: dict[str, list[LineResult]] = field(default_factory=dict)
    num_results: int = 0
    num_sequences: int = 0
    since_s: float | None = None


class Feeder:
    """The jobs in progress. One thread uses it, that of `patience`.

    on_done: where the engine's thread leaves completions; they come back through `take`.
    """

    def __init__(
        self,
        services: JobServices,
        settings: JobSettings,
        *,
        patience: Patience,
        on_done: Callable[[Completion], None],
    ) -> None:
        self.jobs: dict[str, Job] = {}
        self._store = services.store
        self._generation = services.generation
        self._metrics = services.metrics
        self._clock = services.clock
        self._now = services.now
        self._settings = settings
        self._patience = patience
        self._on_done = on_done
        self._shares = FairShares()
        self._lengths = LearnedLengths()
        self._pending = _Pending()
        self._resting: set[str] = set()
        self._num_open = 0
        self._held_until_s: float | None = None

    def add(self, job: Job) -> None:
        """Work on a job from now on."""
        self.jobs[job.batch.id] = job
        self._shares.join(job.batch.id, weigh(job.batch.priority))
        self._shares.set_backlogged(job.batch.id, True)

    def remove(self, job: Job) -> None:
        """Forget a job; nothing of it is open or pending."""
        del self.jobs[job.batch.id]
        self._resting.discard(job.batch.id)
        self._shares.leave(job.batch.id)
        self._lengths.leave(job.batch.id)

    def close(self, job: Job) -> None:
        """Begin no more lines of a job, and give up in the engine what is open."""
        job.close()
        for number, opened in job.open.items():
            self._generation.cancel((job.batch.id, number))
            self._num_open -= opened.num_sequences
        job.open.clear()

    def is_done(self, job: Job) -> bool:
        """Whether every line of a job that was begun has a durable answer, and all were begun."""
        return job.is_idle and job.batch.id not in self._pending.results

    def take(self, completion: Completion) -> None:
        """Take a request that ended; one that was given up meanwhile is dropped."""
        assert isinstance(completion.key, tuple), "keys are batch id and line number"
        batch_id, number = completion.key
        job = self.jobs.get(batch_id)
        opened = None if job is None else job.open.pop(number, None)
        if job is None or opened is None:
            return
        if isinstance(completion.error, _FOR_LATER):
            self._put_back(job, opened, completion.error)
            return
        tokenizer = self._generation.context.tokenizer
        created = int(self._now())
        result = build_answer(job.digest, opened.line, completion, tokenizer, created=created)
        if completion.error is None:
            num_prompt_tokens = completion.request.num_prompt_tokens
            num_new_tokens = sum(len(choice.tokens) for choice in completion.choices)
            job.num_tokens_in += num_prompt_tokens
            job.num_tokens_out += num_new_tokens
            self._lengths.end(batch_id, number, num_new_tokens, opened.num_sequences)
            self._shares.charge(batch_id, num_prompt_tokens + num_new_tokens - opened.num_tokens)
        else:
            self._lengths.forget(batch_id, number)
        self._keep(job, result, opened.num_sequences)

    def commit(self, *, at_once: bool = False) -> None:
        """Make answers durable if there are enough, or they have waited long enough.

        Raises:
            StoreUnavailable: they go on waiting.
        """
        pending = self._pending
        if not pending.results or not (at_once or self._is_commit_due(pending)):
            return
        self._patience.write(partial(self._store.add_results, pending.results))
        self._pending = _Pending()
        self._num_open -= pending.num_sequences
        for batch_id, results in pending.results.items():
            num_failed = sum(result.is_error for result in results)
            job = self.jobs[batch_id]
            job.num_done += len(results)
            job.num_failed += num_failed
            self._metrics.count_lines(
                num_completed=len(results) - num_failed, num_failed=num_failed
            )

    def feed(self) -> bool:
        """Begin some lines; return whether there are more to begin at once.

        Raises:
            StoreUnavailable: lines cannot be fetched now.
        """
        self._wake()
        for _ in range(FEED_LINES):
            if self._num_open >= self._settings.read_ahead or self._is_held:
                return False
            job = self._choose()
            if job is None:
                return False
            self._begin(job)
        return True

    def _wake(self) -> None:
        """Take jobs back among those that have lines whose time to rest is over."""
        for batch_id in [one for one in self._resting if not self._is_resting(self.jobs[one])]:
            self._resting.discard(batch_id)
            self._shares.set_backlogged(batch_id, True)

    def _choose(self) -> Job | None:
        """Return the job whose line goes next, None if there is none. Jobs without one are left
        out until they have one, so this takes no longer for many jobs than for few."""
        while (batch_id := self._shares.choose()) is not None:
            job = self.jobs[batch_id]
            if self._has_line(job):
                return job
            self._shares.set_backlogged(batch_id, False)
            if self._is_resting(job):
                self._resting.add(batch_id)
        return None

    def _is_resting(self, job: Job) -> bool:
        """Whether a job's input could not be read, a moment ago."""
        return job.retry_at_s is not None and self._clock() < job.retry_at_s

    def _is_commit_due(self, pending: _Pending) -> bool:
        """Whether there are enough answers, or they have waited long enough, or the engine has
        nothing else to do than to wait for their commit."""
        most = min(COMMIT_RESULTS, 1 + self._settings.read_ahead // COMMIT_SHARE)
        return (
            pending.num_results >= most
            or pending.num_sequences == self._num_open
            or (pending.since_s is not None and self._clock() - pending.since_s >= COMMIT_EVERY_S)
        )

    def _has_line(self, job: Job) -> bool:
        """Say whether a job has a line to begin; fetch more if none is here."""
        if self._is_resting(job):
            return False
        if not job.waiting and not job.is_fetched:
            lines = self._patience.read(
                partial(self._store.next_lines, job.batch.id, after=job.cursor, limit=FETCH_LINES)
            )
            job.waiting.extend(lines)
            job.is_fetched = len(lines) < FETCH_LINES
            if lines:
                job.cursor = lines[-1].line_number
        return bool(job.waiting)

    def _begin(self, job: Job) -> None:
        """Hand a job's next line to the engine, or answer it if it cannot run."""
        line, generation = job.waiting[0], self._generation
        content = self._read(job, line)
        if content is None:
            return
        job.waiting.popleft()
        try:
            request = parse_content(
                content,
                line,
                generation.context,
                run_seed=generation.run_seed,
                names=self._settings.model_names,
            )
        except GlinthawkError as error:
            self._shares.charge(job.batch.id, 1 + line.num_bytes // _BYTES_PER_TOKEN)
            self._num_open += 1
            self._keep(job, build_failure(job.digest, line, error), 1)
        else:
            self._submit(job, line, request)

    def _submit(self, job: Job, line: LineRecord, request: ParsedRequest) -> None:
        """Hand a request to the engine, with the tokens that it is expected to take."""
        expected = self._lengths.expect(job.batch.id)
        num_tokens = request.num_prompt_tokens + sum(
            min(expected, choice.max_new_tokens) for choice in request.choices
        )
        opened = OpenLine(line, len(request.choices), num_tokens)
        job.open[line.line_number] = opened
        self._lengths.begin(job.batch.id, line.line_number)
        job.retry_at_s = None
        self._num_open += opened.num_sequences
        self._shares.charge(job.batch.id, num_tokens)
        flow = Flow(job.batch.id, JOBS_WEIGHT * self._shares.share(job.batch.id))
        key = (job.batch.id, line.line_number)
        try:
            self._generation.submit(key, request, self._on_done, flow=flow)
        except PeerUnavailable as error:
            del job.open[line.line_number]
            self._put_back(job, opened, error)
            return
        if self._held_until_s is not None:
            self._held_until_s = None
            log.info("generation_available_again")

    @property
    def _is_held(self) -> bool:
        """Whether the engine could not take a line, a moment ago."""
        return self._held_until_s is not None and self._clock() < self._held_until_s

    def _put_back(self, job: Job, opened: OpenLine, error: GlinthawkError) -> None:
        """Keep a line for later, and hold all feeding for a moment."""
        if self._held_until_s is None:
            log.warning("generation_unavailable", error=str(error))
        self._held_until_s = self._clock() + BEGIN_AGAIN_S
        job.waiting.appendleft(opened.line)
        self._shares.set_backlogged(job.batch.id, True)
        self._lengths.forget(job.batch.id, opened.line.line_number)
        self._num_open -= opened.num_sequences
        self._shares.charge(job.batch.id, -opened.num_tokens)

    def _read(self, job: Job, line: LineRecord) -> bytes | None:
        """Return a line's content; None if it cannot be read now, which holds up only its job."""
        assert job.path is not None, "a job without an input has no lines"
        try:
            return read_line(job.path, line)
        except OSError as error:
            if job.retry_at_s is None:
                log.error("input_unreadable", batch=job.batch.id, error=str(error))
            job.retry_at_s = self._clock() + READ_AGAIN_S
            return None

    def _keep(self, job: Job, result: LineResult, num_sequences: int) -> None:
        pending = self._pending
        if not pending.results:
            pending.since_s = self._clock()
        pending.results.setdefault(job.batch.id, []).append(result)
        pending.num_results += 1
        pending.num_sequences += num_sequences
