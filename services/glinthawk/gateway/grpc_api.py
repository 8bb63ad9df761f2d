"""What a gateway answers over gRPC: the same requests and batches as over HTTP, and operations.

The checks, limits and objects are those of the HTTP API; only the way in is another. Each
`Generate` waits in a thread of the gRPC server, so there is a bound to how many may.
"""

import json
import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from glinthawk.errors import (
    CapacityExceeded,
    GlinthawkError,
    InvalidRequest,
    PeerUnavailable,
    StoreUnavailable,
    Unauthenticated,
)
from glinthawk.gateway.api.accounts import Accounts, count_tokens
from glinthawk.gateway.api.batches import build_batch, cancel_batch, keep_batch, parse_batch
from glinthawk.gateway.api.operations import DEFAULT_DEADLINE_S, MAX_DEADLINE_S, Operations
from glinthawk.gateway.api.services import ApiServices, KeyChecker
from glinthawk.gateway.api.stream_options import take_stream_options
from glinthawk.gateway.bodies import build_body, encode_json_line
from glinthawk.gateway.detokenize import TextDelta
from glinthawk.gateway.engine import Completion
from glinthawk.gateway.fields import shown
from glinthawk.gateway.requests import (
    Endpoint,
    ParsedRequest,
    check_model,
    derive_seed,
    load_json,
    parse_body,
)
from glinthawk.gateway.store.records import BatchRecord
from glinthawk.wire.gateway_services import Delta, JobView, NewJob, OnEnd

MAX_CALLS = 128
"""`Generate` calls that are open at a time, of all callers: the server's other half of threads
is for stages and workers."""

MAX_JOB_CALLS = 32
"""Calls of `Jobs` that are open at a time: a locked store holds each up for seconds."""

_DEFAULT_PAGE = 20
_MAX_PAGE = 100


class Doorkeeper:
    """Knows callers by their keys. keys: None where none are asked for."""

    def __init__(self, keys: KeyChecker | None) -> None:
        self._keys = keys

    def admit(self, authorization: str | None) -> str | None:
        """Return the name of the caller's key, None where none is asked for.

        Raises:
            Unauthenticated: the key is missing or not valid.
        """
        if self._keys is None:
            return None
        scheme, _, key = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not key:
            raise Unauthenticated(
                "no API key was sent; send the metadata 'authorization: Bearer KEY'"
            )
        name = self._keys.find(key)
        if name is None:
            raise Unauthenticated("the API key is not valid; it may be mistyped or revoked")
        return name


class _Places:
    """So many calls at a time, and a refusal for those beyond."""

    def __init__(self, num: int, refusal: GlinthawkError) -> None:
        self._free = threading.BoundedSemaphore(num)
        self._refusal = refusal

    @contextmanager
    def take(self) -> Iterator[None]:
        """Have a place for the time of a call; raises the refusal if none is free."""
        if not self._free.acquire(blocking=False):
            raise type(self._refusal)(str(self._refusal))
        try:
            yield
        finally:
            self._free.release()


class GrpcInference:
    """Answers `Inference`. accounts: shared with the HTTP API, so that a limit is one limit."""

    def __init__(
        self,
        services: ApiServices,
        accounts: Accounts,
        doorkeeper: Doorkeeper,
        *,
        max_calls: int = MAX_CALLS,
    ) -> None:
        self._services = services
        self._accounts = accounts
        self._doorkeeper = doorkeeper
        self._places = _Places(
            max_calls,
            CapacityExceeded(
                f"{max_calls} calls of Generate are open, the most there may be; wait, or use the "
                "HTTP API"
            ),
        )

    def generate(
        self, authorization: str | None, endpoint: str, body_json: bytes, on_end: OnEnd
    ) -> Iterator[Delta | bytes]:
        """See `InferenceDoor`.

        Raises:
            InvalidRequest: the body is wrong; NotFound: another model is asked for.
            CapacityExceeded: the caller, or all, have too much open.
            PeerUnavailable: no token can be generated now.
        """
        caller = self._doorkeeper.admit(authorization)
        self._accounts.check(caller)
        request = self._parse(endpoint, body_json)
        if not self._services.generation.is_ready:
            raise PeerUnavailable("no token can be generated now; try again later")
        with self._places.take(), self._accounts.open(caller, count_tokens(request)):
            yield from self._run(request, on_end)

    def _parse(self, endpoint: str, body_json: bytes) -> ParsedRequest:
        services = self._services
        if endpoint not in tuple(Endpoint):
            urls = " or ".join(repr(str(one)) for one in Endpoint)
            raise InvalidRequest(
                f"endpoint must be {urls}, not {shown(endpoint)}", param="endpoint"
            )
        if len(body_json) > services.limits.max_body_bytes:
            raise InvalidRequest(
                f"the body has {len(body_json)} bytes; {services.limits.max_body_bytes} are "
                "taken at most, send less"
            )
        try:
            body = load_json(body_json)
        except ValueError as error:
            raise InvalidRequest(f"the body cannot be read: {error}") from error
        if not isinstance(body, dict):
            raise InvalidRequest("the body must be a JSON object")
        check_model(body.get("model"), services.model_names)
        take_stream_options(body)
        generation = services.generation
        seed = derive_seed(generation.run_seed, services.new_id())
        return parse_body(Endpoint(endpoint), body, generation.context, default_seed=seed)

    def _run(self, request: ParsedRequest, on_end: OnEnd) -> Iterator[Delta | bytes]:
        """Yield what the engine says until it, or the call, ends."""
        generation = self._services.generation
        body_id = self._services.new_id()
        key = f"grpc-{body_id}"
        news: queue.SimpleQueue[TextDelta | Completion | None] = queue.SimpleQueue()
        generation.submit(key, request, news.put, listener=news.put)
        try:
            if not on_end(lambda: news.put(None)):
                return
            while isinstance(item := news.get(), TextDelta):
                yield _build_delta(item)
            if item is not None:
                yield self._build_end(request, item, body_id)
        finally:
            generation.cancel(key)

    def _build_end(self, request: ParsedRequest, completion: Completion, body_id: str) -> bytes:
        if completion.error is not None:
            raise completion.error
        body = build_body(
            request,
            completion.choices,
            self._services.generation.context.tokenizer,
            body_id=body_id,
            created=self._services.now(),
        )
        return encode_json_line(body).rstrip(b"\n")


class GrpcJobs:
    """Answers `Jobs`.

    Raises:
        StoreUnavailable: as the store does, and if too many calls wait for it.
    """

    def __init__(
        self, services: ApiServices, doorkeeper: Doorkeeper, *, max_calls: int = MAX_JOB_CALLS
    ) -> None:
        self._services = services
        self._doorkeeper = doorkeeper
        self._places = _Places(
            max_calls,
            StoreUnavailable(
                f"the store is busy: {max_calls} calls of Jobs wait for it, the most there may be; "
                "try again"
            ),
        )

    def create_job(self, authorization: str | None, job: NewJob) -> JobView:
        """See `JobsDoor`."""
        caller = self._doorkeeper.admit(authorization)
        services = self._services
        fields = {
            "input_file_id": job.input_file_id,
            "endpoint": job.endpoint,
            "completion_window": job.completion_window,
            "priority": job.priority,
            "metadata": dict(job.metadata),
        }
        batch = parse_batch(
            fields, batch_id=f"batch_{services.new_id()}", owner=caller, now=services.now()
        )
        with self._places.take():
            return _build_view(keep_batch(services, batch))

    def get_job(self, authorization: str | None, job_id: str) -> JobView:
        """See `JobsDoor`."""
        self._doorkeeper.admit(authorization)
        with self._places.take():
            return _build_view(self._services.store.get_batch(job_id))

    def list_jobs(
        self, authorization: str | None, *, after: str | None, limit: int
    ) -> tuple[list[JobView], bool]:
        """See `JobsDoor`."""
        self._doorkeeper.admit(authorization)
        if limit > _MAX_PAGE:
            raise InvalidRequest(f"limit is {limit}; at most {_MAX_PAGE} come at a time")
        limit = limit or _DEFAULT_PAGE
        with self._places.take():
            found = self._services.store.list_batches(limit=limit + 1, after=after)
        return [_build_view(batch) for batch in found[:limit]], len(found) > limit

    def cancel_job(self, authorization: str | None, job_id: str) -> JobView:
        """See `JobsDoor`."""
        self._doorkeeper.admit(authorization)
        with self._places.take():
            return _build_view(cancel_batch(self._services, job_id))


class GrpcOperations:
    """Answers `Operations`."""

    def __init__(self, operations: Operations) -> None:
        self._operations = operations

    def inspect_json(self) -> bytes:
        """See `OperationsDoor`."""
        return json.dumps(self._operations.inspect()).encode()

    def begin_drain(self, worker: str, deadline_s: float | None) -> float:
        """See `OperationsDoor`."""
        deadline_s = DEFAULT_DEADLINE_S if deadline_s is None else deadline_s
        if not 0 <= deadline_s <= MAX_DEADLINE_S:
            raise InvalidRequest(
                f"deadline_s is {deadline_s}; use 0 to {MAX_DEADLINE_S:g}", param="deadline_s"
            )
        self._operations.drain(worker, deadline_s)
        return deadline_s

    def cancel_drain(self, worker: str) -> None:
        """See `OperationsDoor`."""
        self._operations.cancel_drain(worker)


def _build_delta(delta: TextDelta) -> Delta:
    reason = None if delta.finish_reason is None else str(delta.finish_reason)
    return Delta(delta.index, delta.text, delta.tokens, reason)


def _build_view(batch: BatchRecord) -> JobView:
    return JobView(
        id=batch.id,
        status=str(batch.status),
        total=batch.counts.total,
        completed=batch.counts.completed,
        failed=batch.counts.failed,
        output_file_id=batch.output_file_id,
        error_file_id=batch.error_file_id,
        batch_json=encode_json_line(build_batch(batch)).rstrip(b"\n"),
    )
