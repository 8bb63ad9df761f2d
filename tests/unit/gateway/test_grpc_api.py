"""gRPC for users and operators, through a real channel, over a real engine and store."""

import contextlib
import dataclasses
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from glinthawk.errors import NotFound, StoreUnavailable
from glinthawk.gateway.api.services import ApiLimits
from glinthawk.gateway.grpc_api import Doorkeeper, GrpcInference, GrpcJobs
from glinthawk.gateway.store.records import BatchStatus, FilePurpose
from glinthawk.wire.gateway_services import attach_gateway_services
from glinthawk.wire.grpc_server import GrpcServer, open_channel, secret_metadata
from glinthawk.wire.proto import gateway_pb2 as pb
from glinthawk.wire.stubs import inference_stub, jobs_stub, operations_stub
from unit.gateway.http.serving import LONG, Served, serve, wait_until

KEY, SECRET = "a-key", "the-secret"
WAIT_S = 120.0
CHAT = "/v1/chat/completions"
BODY: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}
MINE = (("authorization", f"Bearer {KEY}"),)


class RecordedOperations:
    """Whom operators' calls reach."""

    def __init__(self) -> None:
        self.drains: dict[str, float | None] = {}

    def inspect_json(self) -> bytes:
        return b'{"is_ready": true}'

    def begin_drain(self, worker: str, deadline_s: float | None) -> float:
        if worker != "w":
            raise NotFound(f"there is no attention worker {worker!r}")
        self.drains[worker] = deadline_s
        return deadline_s or 300.0

    def cancel_drain(self, worker: str) -> None:
        del self.drains[worker]


class Gateway:
    """A gateway's gRPC services, and a channel to them."""

    def __init__(self, served: Served, channel: grpc.Channel, operations: RecordedOperations):
        self.served = served
        self.channel = channel
        self.operations = operations

    def generate(self, body: dict[str, Any], timeout_s: float = WAIT_S) -> Any:
        request = pb.GenerateRequest(endpoint=CHAT, body_json=json.dumps(body).encode())
        return inference_stub(self.channel).Generate(request, timeout=timeout_s, metadata=MINE)

    def fail(self, body: dict[str, Any]) -> grpc.StatusCode:
        """Return the status with which a call ends that must not succeed."""
        with pytest.raises(grpc.RpcError) as caught:
            list(self.generate(body))
        return status_of(caught.value)


def status_of(error: BaseException) -> grpc.StatusCode:
    assert isinstance(error, grpc.Call)
    return error.code()


@contextmanager
def run_gateway(
    folder: Path, *, limits: ApiLimits | None = None, max_calls: int = 8
) -> Iterator[Gateway]:
    more = {} if limits is None else {"limits": limits}
    with serve(folder, keys={KEY: "me"}, **more) as served:
        doorkeeper = Doorkeeper(served.services.keys)
        operations = RecordedOperations()
        server = GrpcServer("127.0.0.1", 0, secret=SECRET)
        attach_gateway_services(
            server,
            GrpcInference(served.services, served.accounts, doorkeeper, max_calls=max_calls),
            GrpcJobs(served.services, doorkeeper),
            operations,
        )
        server.start()
        try:
            with open_channel(server.address) as channel:
                yield Gateway(served, channel, operations)
        finally:
            server.stop(0.2)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with run_gateway(tmp_path_factory.mktemp("data")) as gateway:
        yield gateway


@pytest.fixture
def gateway(shared: Gateway) -> Gateway:
    shared.served.tiers.pace_s = 0.0
    shared.served.tiers.fail_at = None
    return shared


# --- Generate


def test_deltas_come_first_and_the_body_last(gateway: Gateway) -> None:
    *deltas, last = list(gateway.generate(BODY | {"n": 2}))
    body = json.loads(last.body_json)
    for choice in body["choices"]:
        mine = [one.delta for one in deltas if one.delta.index == choice["index"]]
        assert "".join(delta.text for delta in mine) == "hello world"
        assert choice["message"]["content"] == "hello world"
        assert [delta.finish_reason for delta in mine][-1] == "stop"
        assert not any(delta.finish_reason for delta in mine[:-1])
    assert body["usage"]["completion_tokens"] == 24


def test_fields_about_streaming_have_no_effect(gateway: Gateway) -> None:
    more = {"stream": True, "stream_options": {"include_usage": True}}
    *_, last = list(gateway.generate(BODY | more))
    assert json.loads(last.body_json)["object"] == "chat.completion"


def test_a_call_that_is_cancelled_ends_in_the_engine(gateway: Gateway) -> None:
    gateway.served.tiers.pace_s = 0.2
    call = gateway.generate(LONG)
    assert next(call).delta.text
    assert not gateway.served.is_idle()
    assert call.cancel()
    wait_until(gateway.served.is_idle, "the engine is idle")


def test_a_call_past_its_deadline_ends_in_the_engine(gateway: Gateway) -> None:
    gateway.served.tiers.pace_s = 0.05
    call = gateway.generate(LONG, timeout_s=0.5)
    with pytest.raises(grpc.RpcError) as caught:
        list(call)
    assert status_of(caught.value) is grpc.StatusCode.DEADLINE_EXCEEDED
    wait_until(gateway.served.is_idle, "the engine is idle")


def test_errors_have_the_status_that_means_them(gateway: Gateway) -> None:
    assert gateway.fail(BODY | {"temperature": 9}) is grpc.StatusCode.INVALID_ARGUMENT
    assert gateway.fail(BODY | {"model": "gpt-4o"}) is grpc.StatusCode.NOT_FOUND
    gateway.served.tiers.fail_at = 3
    assert gateway.fail(BODY) is grpc.StatusCode.INTERNAL


@pytest.mark.parametrize("body", [b"no JSON", b"[]", b'{"model": "tiny"}', b" " * (65 << 10)])
def test_a_body_that_is_no_request_is_refused(gateway: Gateway, body: bytes) -> None:
    request = pb.GenerateRequest(endpoint=CHAT, body_json=body)
    with pytest.raises(grpc.RpcError) as caught:
        list(inference_stub(gateway.channel).Generate(request, timeout=WAIT_S, metadata=MINE))
    assert status_of(caught.value) is grpc.StatusCode.INVALID_ARGUMENT


def test_another_endpoint_is_refused_by_name(gateway: Gateway) -> None:
    request = pb.GenerateRequest(endpoint="/v1/embeddings", body_json=b"{}")
    with pytest.raises(grpc.RpcError, match="/v1/embeddings") as caught:
        list(inference_stub(gateway.channel).Generate(request, timeout=WAIT_S, metadata=MINE))
    assert status_of(caught.value) is grpc.StatusCode.INVALID_ARGUMENT


def test_calls_over_the_bound_are_refused_and_the_place_comes_free(tmp_path: Path) -> None:
    with run_gateway(tmp_path, max_calls=1) as gateway:
        gateway.served.tiers.pace_s = 0.2
        first = gateway.generate(LONG)
        assert next(first).delta.text
        assert gateway.fail(BODY) is grpc.StatusCode.RESOURCE_EXHAUSTED
        first.cancel()
        wait_until(gateway.served.is_idle, "the engine is idle")
        gateway.served.tiers.pace_s = 0.0

        def is_answered() -> bool:
            call = gateway.generate(BODY)
            with contextlib.suppress(grpc.RpcError):
                list(call)
            assert call.code() in (grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED)
            return bool(call.code() is grpc.StatusCode.OK)

        wait_until(is_answered, "the place is free again")


def test_grpc_and_http_count_together(tmp_path: Path) -> None:
    limits = ApiLimits(
        64 << 10, 256 << 10, max_key_requests=1, max_key_tokens=100_000, max_key_batches=9
    )
    with run_gateway(tmp_path, limits=limits) as gateway:
        gateway.served.tiers.pace_s = 0.2
        call = gateway.generate(LONG)
        assert next(call).delta.text
        headers = {"authorization": f"Bearer {KEY}"}
        answer = gateway.served.http.post(CHAT, json=BODY, headers=headers)
        assert answer.status_code == 429
        call.cancel()
        wait_until(gateway.served.is_idle, "the engine is idle")


# --- who may call


@pytest.mark.parametrize("authorization", [None, "Bearer wrong", KEY, "Basic abc"])
def test_users_services_need_a_key_and_not_the_secret(
    gateway: Gateway, authorization: str | None
) -> None:
    metadata = secret_metadata(SECRET)
    if authorization is not None:
        metadata = (*metadata, ("authorization", authorization))
    request = pb.GenerateRequest(endpoint=CHAT, body_json=json.dumps(BODY).encode())
    for call in (
        lambda: list(
            inference_stub(gateway.channel).Generate(request, timeout=WAIT_S, metadata=metadata)
        ),
        lambda: jobs_stub(gateway.channel).ListJobs(
            pb.ListJobsRequest(), timeout=WAIT_S, metadata=metadata
        ),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            call()
        assert status_of(caught.value) is grpc.StatusCode.UNAUTHENTICATED


def test_operations_need_the_secret_and_not_a_key(gateway: Gateway) -> None:
    stub = operations_stub(gateway.channel)
    with pytest.raises(grpc.RpcError) as caught:
        stub.Inspect(pb.InspectRequest(), timeout=WAIT_S, metadata=MINE)
    assert status_of(caught.value) is grpc.StatusCode.UNAUTHENTICATED
    shown = secret_metadata(SECRET)
    told = stub.Inspect(pb.InspectRequest(), timeout=WAIT_S, metadata=shown)
    assert json.loads(told.inspection_json) == {"is_ready": True}


def test_a_drain_of_no_seconds_is_not_one_of_the_default(gateway: Gateway) -> None:
    stub, shown = operations_stub(gateway.channel), secret_metadata(SECRET)
    stub.Drain(pb.DrainRequest(worker="w"), timeout=WAIT_S, metadata=shown)
    assert gateway.operations.drains == {"w": None}
    stub.Drain(pb.DrainRequest(worker="w", deadline_s=0.0), timeout=WAIT_S, metadata=shown)
    assert gateway.operations.drains == {"w": 0.0}
    stub.CancelDrain(pb.CancelDrainRequest(worker="w"), timeout=WAIT_S, metadata=shown)
    assert gateway.operations.drains == {}
    with pytest.raises(grpc.RpcError) as caught:
        stub.Drain(pb.DrainRequest(worker="x"), timeout=WAIT_S, metadata=shown)
    assert status_of(caught.value) is grpc.StatusCode.NOT_FOUND


def test_reflection_lists_the_services(gateway: Gateway) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(gateway.channel)
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    (answer,) = list(stub.ServerReflectionInfo(iter([request]), timeout=WAIT_S))
    names = {service.name for service in answer.list_services_response.service}
    ours = {f"glinthawk.v1.{name}" for name in ("Inference", "Jobs", "Operations")}
    assert ours <= names


# --- Jobs


def test_a_job_is_made_found_listed_and_cancelled(gateway: Gateway) -> None:
    store = gateway.served.store
    file = store.add_file([b"{}\n"], purpose=FilePurpose.BATCH, filename="in.jsonl")
    stub = jobs_stub(gateway.channel)
    request = pb.CreateJobRequest(
        input_file_id=file.id,
        endpoint=CHAT,
        completion_window="24h",
        priority=-3,
        metadata={"team": "a"},
    )
    job = stub.CreateJob(request, timeout=WAIT_S, metadata=MINE)
    assert (job.status, job.output_file_id) == ("validating", "")
    assert gateway.served.jobs.created[-1] == job.id
    batch = json.loads(job.batch_json)
    assert (batch["priority"], batch["metadata"]) == (-3, {"team": "a"})
    assert store.get_batch(job.id).owner == "me"
    second = stub.CreateJob(request, timeout=WAIT_S, metadata=MINE)
    assert stub.GetJob(pb.GetJobRequest(id=job.id), timeout=WAIT_S, metadata=MINE) == job
    page = stub.ListJobs(pb.ListJobsRequest(limit=1), timeout=WAIT_S, metadata=MINE)
    assert ([one.id for one in page.jobs], page.has_more) == ([second.id], True)
    after = pb.ListJobsRequest(after=second.id)
    page = stub.ListJobs(after, timeout=WAIT_S, metadata=MINE)
    assert ([one.id for one in page.jobs], page.has_more) == ([job.id], False)
    cancelled = stub.CancelJob(pb.CancelJobRequest(id=job.id), timeout=WAIT_S, metadata=MINE)
    assert cancelled.status == BatchStatus.CANCELLING
    assert gateway.served.jobs.cancelled == [job.id]


def test_jobs_that_wait_for_a_store_are_bounded(gateway: Gateway) -> None:
    goes_on, is_in = threading.Event(), threading.Event()

    class HangingStore:
        def get_batch(self, batch_id: str) -> None:
            is_in.set()
            assert goes_on.wait(WAIT_S)
            raise NotFound(batch_id)

    services = dataclasses.replace(gateway.served.services, store=HangingStore())  # type: ignore[arg-type]
    jobs = GrpcJobs(services, Doorkeeper(None), max_calls=1)

    def find() -> None:
        with pytest.raises(NotFound):
            jobs.get_job(None, "b")

    first = threading.Thread(target=find)
    first.start()
    assert is_in.wait(WAIT_S)
    with pytest.raises(StoreUnavailable, match="busy: 1 calls"):
        jobs.get_job(None, "b")
    goes_on.set()
    first.join(WAIT_S)
    find()


def test_a_wrong_job_is_refused(gateway: Gateway) -> None:
    stub = jobs_stub(gateway.channel)
    for request in (
        pb.CreateJobRequest(input_file_id="none", endpoint=CHAT, completion_window="24h"),
        pb.CreateJobRequest(input_file_id="none", endpoint=CHAT, completion_window="soon"),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            stub.CreateJob(request, timeout=WAIT_S, metadata=MINE)
        assert status_of(caught.value) is grpc.StatusCode.INVALID_ARGUMENT
    with pytest.raises(grpc.RpcError) as caught:
        stub.GetJob(pb.GetJobRequest(id="batch_none"), timeout=WAIT_S, metadata=MINE)
    assert status_of(caught.value) is grpc.StatusCode.NOT_FOUND
    with pytest.raises(grpc.RpcError) as caught:
        stub.ListJobs(pb.ListJobsRequest(limit=101), timeout=WAIT_S, metadata=MINE)
    assert status_of(caught.value) is grpc.StatusCode.INVALID_ARGUMENT
