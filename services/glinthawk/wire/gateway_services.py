"""The gRPC services of a gateway for users and operators, as plain data.

Protobuf stops here: who answers the calls sees strings, bytes and the dataclasses below. It must
not know engine, store or keys.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import grpc

from glinthawk.wire.grpc_server import GrpcServer
from glinthawk.wire.proto import gateway_pb2 as pb
from glinthawk.wire.proto import gateway_pb2_grpc
from glinthawk.wire.stubs import register_inference, register_jobs, register_operations

INFERENCE = "glinthawk.v1.Inference"
JOBS = "glinthawk.v1.Jobs"
OPERATIONS = "glinthawk.v1.Operations"

_AUTHORIZATION = "authorization"


@dataclass(frozen=True)
class Delta:
    """What a choice has grown by. finish_reason: in its last one."""

    index: int
    text: str
    tokens: tuple[int, ...]
    finish_reason: str | None


@dataclass(frozen=True)
class NewJob:
    """The fields of a batch to be made, as they came: nothing is checked."""

    input_file_id: str
    endpoint: str
    completion_window: str
    priority: int
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class JobView:
    """A batch. batch_json: OpenAI's object. File ids are None while there is no file."""

    id: str
    status: str
    total: int
    completed: int
    failed: int
    output_file_id: str | None
    error_file_id: str | None
    batch_json: bytes


OnEnd = Callable[[Callable[[], None]], bool]
"""Registers what to call, in another thread, when a call is over; False: it is over already."""


class InferenceDoor(Protocol):
    """Answers `Inference`. authorization: of the call's metadata, None without it."""

    def generate(
        self, authorization: str | None, endpoint: str, body_json: bytes, on_end: OnEnd
    ) -> Iterator[Delta | bytes]:
        """Yield deltas as they come, then the body; end early when the call is over."""


class JobsDoor(Protocol):
    """Answers `Jobs`. authorization: as in `InferenceDoor`."""

    def create_job(self, authorization: str | None, job: NewJob) -> JobView:
        """Make a batch."""

    def get_job(self, authorization: str | None, job_id: str) -> JobView:
        """Return a batch."""

    def list_jobs(
        self, authorization: str | None, *, after: str | None, limit: int
    ) -> tuple[list[JobView], bool]:
        """Return a page of batches, and whether there are more. limit: 0 is the default."""

    def cancel_job(self, authorization: str | None, job_id: str) -> JobView:
        """Begin to cancel a batch."""


class OperationsDoor(Protocol):
    """Answers `Operations`."""

    def inspect_json(self) -> bytes:
        """Return how the gateway stands."""

    def begin_drain(self, worker: str, deadline_s: float | None) -> float:
        """Begin to drain a worker; return its deadline."""

    def cancel_drain(self, worker: str) -> None:
        """Take a drain back."""


def attach_gateway_services(
    server: GrpcServer, inference: InferenceDoor, jobs: JobsDoor, operations: OperationsDoor
) -> None:
    """Offer the three services on a gateway's gRPC server, before that starts."""
    ours = _InferenceServicer(inference)
    server.add(INFERENCE, lambda bare: register_inference(ours, bare), has_own_guard=True)
    theirs = _JobsServicer(jobs)
    server.add(JOBS, lambda bare: register_jobs(theirs, bare), has_own_guard=True)
    operating = _OperationsServicer(operations)
    server.add(OPERATIONS, lambda bare: register_operations(operating, bare))


class _InferenceServicer(gateway_pb2_grpc.InferenceServicer):
    """Binds the generated interface to its door."""

    def __init__(self, door: InferenceDoor) -> None:
        self._door = door

    def Generate(self, request: Any, context: grpc.ServicerContext) -> Iterator[pb.GenerateReply]:
        """Answer one request."""
        pieces = self._door.generate(
            _authorization(context), request.endpoint, request.body_json, context.add_callback
        )
        for piece in pieces:
            if isinstance(piece, bytes):
                yield pb.GenerateReply(body_json=piece)
            else:
                delta = pb.Delta(
                    index=piece.index,
                    text=piece.text,
                    tokens=piece.tokens,
                    finish_reason=piece.finish_reason or "",
                )
                yield pb.GenerateReply(delta=delta)


class _JobsServicer(gateway_pb2_grpc.JobsServicer):
    """Binds the generated interface to its door."""

    def __init__(self, door: JobsDoor) -> None:
        self._door = door

    def CreateJob(self, request: Any, context: grpc.ServicerContext) -> pb.Job:
        """Make a batch."""
        job = NewJob(
            request.input_file_id,
            request.endpoint,
            request.completion_window,
            request.priority,
            dict(request.metadata),
        )
        return _encode_job(self._door.create_job(_authorization(context), job))

    def GetJob(self, request: Any, context: grpc.ServicerContext) -> pb.Job:
        """Return a batch."""
        return _encode_job(self._door.get_job(_authorization(context), request.id))

    def ListJobs(self, request: Any, context: grpc.ServicerContext) -> pb.ListJobsReply:
        """Return a page of batches."""
        jobs, has_more = self._door.list_jobs(
            _authorization(context), after=request.after or None, limit=request.limit
        )
        return pb.ListJobsReply(jobs=map(_encode_job, jobs), has_more=has_more)

    def CancelJob(self, request: Any, context: grpc.ServicerContext) -> pb.Job:
        """Begin to cancel a batch."""
        return _encode_job(self._door.cancel_job(_authorization(context), request.id))


class _OperationsServicer(gateway_pb2_grpc.OperationsServicer):
    """Binds the generated interface to its door."""

    def __init__(self, door: OperationsDoor) -> None:
        self._door = door

    def Inspect(self, request: Any, context: grpc.ServicerContext) -> pb.InspectReply:
        """Tell how the gateway stands."""
        return pb.InspectReply(inspection_json=self._door.inspect_json())

    def Drain(self, request: Any, context: grpc.ServicerContext) -> pb.DrainReply:
        """Begin to drain a worker."""
        deadline_s = request.deadline_s if request.HasField("deadline_s") else None
        return pb.DrainReply(deadline_s=self._door.begin_drain(request.worker, deadline_s))

    def CancelDrain(self, request: Any, context: grpc.ServicerContext) -> pb.CancelDrainReply:
        """Take a drain back."""
        self._door.cancel_drain(request.worker)
        return pb.CancelDrainReply()


def _authorization(context: grpc.ServicerContext) -> str | None:
    for key, value in context.invocation_metadata() or ():
        if key == _AUTHORIZATION:
            return value if isinstance(value, str) else value.decode("utf-8", "replace")
    return None


def _encode_job(job: JobView) -> pb.Job:
    return pb.Job(
        id=job.id,
        status=job.status,
        total=job.total,
        completed=job.completed,
        failed=job.failed,
        output_file_id=job.output_file_id or "",
        error_file_id=job.error_file_id or "",
        batch_json=job.batch_json,
    )
