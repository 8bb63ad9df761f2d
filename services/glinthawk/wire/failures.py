"""Errors on the wire: the payload of a FAILED frame, and gRPC status codes.

One table maps the leaves of the error tree both ways; a contract test proves that no leaf is
missing. A subclass that the table does not name travels as its nearest ancestor in it.
"""

import struct

import grpc

from glinthawk import errors
from glinthawk.wire.buffers import Reader, require

_PREFIX = struct.Struct("<HI")

STATUS_OF: dict[type[errors.GlinthawkError], tuple[int, grpc.StatusCode]] = {
    errors.InvalidRequest: (1, grpc.StatusCode.INVALID_ARGUMENT),
    errors.UnsupportedModel: (2, grpc.StatusCode.INVALID_ARGUMENT),
    errors.InvalidConfig: (3, grpc.StatusCode.INVALID_ARGUMENT),
    errors.NotFound: (4, grpc.StatusCode.NOT_FOUND),
    errors.Unauthenticated: (5, grpc.StatusCode.UNAUTHENTICATED),
    errors.CapacityExceeded: (6, grpc.StatusCode.RESOURCE_EXHAUSTED),
    errors.PeerUnavailable: (7, grpc.StatusCode.UNAVAILABLE),
    errors.StateLost: (8, grpc.StatusCode.FAILED_PRECONDITION),
    errors.InvariantBroken: (9, grpc.StatusCode.INTERNAL),
    errors.StoreUnavailable: (10, grpc.StatusCode.UNAVAILABLE),
}
"""Number in a FAILED frame, and gRPC status, of each error."""

ERROR_METADATA = "glinthawk-error"
"""Key of the trailing metadata that carries the number, as text."""

_OF_NUMBER = {number: kind for kind, (number, _) in STATUS_OF.items()}
_OF_STATUS: dict[grpc.StatusCode, type[errors.GlinthawkError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: errors.InvalidRequest,
    grpc.StatusCode.OUT_OF_RANGE: errors.InvalidRequest,
    grpc.StatusCode.NOT_FOUND: errors.NotFound,
    grpc.StatusCode.UNIMPLEMENTED: errors.NotFound,
    grpc.StatusCode.UNAUTHENTICATED: errors.Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: errors.Unauthenticated,
    grpc.StatusCode.RESOURCE_EXHAUSTED: errors.CapacityExceeded,
    grpc.StatusCode.UNAVAILABLE: errors.PeerUnavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: errors.PeerUnavailable,
    grpc.StatusCode.CANCELLED: errors.PeerUnavailable,
    grpc.StatusCode.ABORTED: errors.PeerUnavailable,
    grpc.StatusCode.FAILED_PRECONDITION: errors.StateLost,
}


def status_of(error: errors.GlinthawkError) -> tuple[int, grpc.StatusCode]:
    """Return the wire number and gRPC status of an error."""
    for kind in type(error).__mro__:
        if kind in STATUS_OF:
            return STATUS_OF[kind]
    return STATUS_OF[errors.InvariantBroken]


def encode_failure(error: errors.GlinthawkError) -> bytes:
    """Return the payload of a FAILED frame."""
    message = str(error).encode()
    return _PREFIX.pack(status_of(error)[0], len(message)) + message


def decode_failure(payload: bytes | bytearray | memoryview) -> errors.GlinthawkError:
    """Return (do not raise) the error that a FAILED frame carries.

    Raises:
        FrameError: the payload is not one.
    """
    reader = Reader(payload, "a failure")
    number, length = _PREFIX.unpack(reader.take(_PREFIX.size))
    require(number in _OF_NUMBER, f"error number {number} is not one of 1 to {max(_OF_NUMBER)}")
    message = reader.text(length)
    reader.finish()
    return _OF_NUMBER[number](message)


def translate_rpc_error(error: grpc.RpcError, peer: str) -> errors.GlinthawkError:
    """Return the error of our tree that a failed call to `peer` means."""
    if not isinstance(error, grpc.Call):
        return errors.PeerUnavailable(f"{peer} does not answer: {error}")
    status, details = error.code(), error.details() or ""
    for key, value in error.trailing_metadata() or ():
        if key == ERROR_METADATA and str(value).isdigit() and int(value) in _OF_NUMBER:
            return _OF_NUMBER[int(value)](details)
    kind = _OF_STATUS.get(status, errors.InvariantBroken)
    return kind(f"{peer} answered {status.name}: {details}")
