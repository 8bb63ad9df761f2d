"""The copy of a sequence's KV from one attention worker to another: the call, and its frames.

    gateway --Pages.Send--> source --IMPORT, page by page--> target
                                   <--IMPORTED, or FAILED--

The payload of an IMPORT frame: sequence u64, page index u32 and 20 zeros, then the content of the
page as `AttentionBackend.export_page` gives it. The header has the move's number as step, and as
rows the tokens that the sequence has in all. Nothing here knows pages otherwise.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import grpc

from glinthawk.core.ids import SequenceId
from glinthawk.wire.failures import translate_rpc_error
from glinthawk.wire.frames import FrameError, FrameHeader, FrameKind
from glinthawk.wire.grpc_server import GrpcServer, open_channel, secret_metadata
from glinthawk.wire.proto import pages_pb2 as pb
from glinthawk.wire.proto import pages_pb2_grpc
from glinthawk.wire.stubs import pages_stub, register_pages

SERVICE = "glinthawk.v1.Pages"

_PREFIX = struct.Struct("<QI20s")
_ZEROS = bytes(20)


@dataclass(frozen=True)
class PagesToSend:
    """What the gateway asks of the source: the first `num_tokens` tokens of a sequence go to
    another worker, if both are still in the epochs that are named."""

    number: int
    sequence: SequenceId
    num_tokens: int
    source_epoch: int
    target: str
    target_address: str
    target_epoch: int


@dataclass(frozen=True)
class PagesSent:
    """What was copied."""

    num_pages: int
    num_bytes: int


@dataclass(frozen=True)
class PageArrival:
    """A page that came: the index-th of a sequence of `num_tokens` tokens."""

    number: int
    sequence: SequenceId
    num_tokens: int
    index: int
    content: memoryview


class Sender(Protocol):
    """Does the copy, in the thread of the call."""

    def __call__(self, order: PagesToSend, time_left: Callable[[], float]) -> PagesSent:
        """Copy, while there is time left: seconds, 0 when the caller has given up."""


def attach_pages(server: GrpcServer, send: Sender) -> None:
    """Offer the Pages service on a worker's gRPC server, before that starts."""
    servicer = _PagesServicer(send)
    server.add(SERVICE, lambda bare: register_pages(servicer, bare))


def send_pages(
    address: str, order: PagesToSend, *, secret: str | None, timeout_s: float
) -> PagesSent:
    """Have the worker at `address` (host:port) copy, and wait until the target has all.

    Raises:
        PeerUnavailable: the source or the target does not answer in time.
        StateLost: the source does not hold the tokens, or has begun anew.
        CapacityExceeded: the target has no room.
        InvalidRequest: the target does not take them.
    """
    request = pb.SendPagesRequest(
        number=order.number,
        sequence=order.sequence,
        num_tokens=order.num_tokens,
        source_epoch=order.source_epoch,
        target=order.target,
        target_address=order.target_address,
        target_epoch=order.target_epoch,
    )
    with open_channel(address) as channel:
        try:
            reply = pages_stub(channel).Send(
                request,
                timeout=timeout_s,
                # A single attempt to connect fails on a busy machine.
                wait_for_ready=True,
                metadata=secret_metadata(secret),
            )
        except grpc.RpcError as error:
            raise translate_rpc_error(error, address) from error
    return PagesSent(reply.num_pages, reply.num_bytes)


def import_header(order: PagesToSend, kind: FrameKind = FrameKind.IMPORT) -> FrameHeader:
    """Return the header of the frames of a copy."""
    return FrameHeader(kind, epoch=order.target_epoch, step=order.number, rows=order.num_tokens)


def pack_import(order: PagesToSend, index: int) -> bytes:
    """Return what stands before the content of a page in an IMPORT frame."""
    return _PREFIX.pack(order.sequence, index, _ZEROS)


def unpack_import(header: FrameHeader, payload: memoryview) -> PageArrival:
    """Read an IMPORT frame; the content is a view of the payload.

    Raises:
        FrameError: it is too short, or contradicts itself.
    """
    if len(payload) < _PREFIX.size:
        raise FrameError(f"an IMPORT frame of {len(payload)} bytes has no page in it")
    sequence, index, zeros = _PREFIX.unpack_from(payload)
    if zeros != _ZEROS or not header.rows:
        raise FrameError(
            f"an IMPORT frame has {header.rows} rows, or reserved bytes that are not zero"
        )
    content = payload[_PREFIX.size :]
    return PageArrival(header.step, SequenceId(sequence), header.rows, index, content)


class _PagesServicer(pages_pb2_grpc.PagesServicer):
    """Binds the generated interface to the sender."""

    def __init__(self, send: Sender) -> None:
        self._send = send

    def Send(self, request: Any, context: grpc.ServicerContext) -> pb.SendPagesReply:
        """Copy a sequence's KV."""
        order = PagesToSend(
            number=request.number,
            sequence=SequenceId(request.sequence),
            num_tokens=request.num_tokens,
            source_epoch=request.source_epoch,
            target=request.target,
            target_address=request.target_address,
            target_epoch=request.target_epoch,
        )

        def time_left() -> float:
            return max(0.0, context.time_remaining() or 0.0) if context.is_active() else 0.0

        sent = self._send(order, time_left)
        return pb.SendPagesReply(num_pages=sent.num_pages, num_bytes=sent.num_bytes)
