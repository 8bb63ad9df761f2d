"""What every gRPC server and channel of Glinthawk has in common.

Health, reflection, keepalive, the cluster secret, and the one place where errors of our tree
become status codes. (`failures.translate_rpc_error` is the way back.)
"""

import hmac
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from glinthawk.errors import GlinthawkError, InvalidConfig, InvariantBroken, Unauthenticated
from glinthawk.telemetry.logging import get_logger
from glinthawk.wire.failures import ERROR_METADATA, status_of
from glinthawk.wire.open_services import OpenServices

SECRET_METADATA = "glinthawk-secret"
"""Key of the request metadata that carries the cluster secret."""

_MAX_DETAILS = 2000
_END_S = 1.0
"""How long calls that were cut off are waited for."""
_KEEPALIVE = [
    ("grpc.keepalive_time_ms", 3000),
    ("grpc.keepalive_timeout_ms", 5000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
]
_SERVER_OPTIONS = [
    *_KEEPALIVE,
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 1000),
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.so_reuseport", 0),
]
_CHANNEL_OPTIONS = [
    *_KEEPALIVE,
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
    ("grpc.max_reconnect_backoff_ms", 2000),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
]

_log = get_logger("wire")


class GrpcServer:
    """A synchronous gRPC server with health, reflection and our errors.

    Args:
        host, port: where to listen; port 0 takes a free one.
        secret: the cluster secret that callers must show, or None.
        credentials: for TLS, or None.
        max_workers: calls that run at once; an open stream is one.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        secret: str | None = None,
        credentials: grpc.ServerCredentials | None = None,
        max_workers: int = 256,
    ) -> None:
        self._open_services = OpenServices()
        self._boundary = BoundaryInterceptor(secret, self._open_services)
        self._executor = ThreadPoolExecutor(max_workers, thread_name_prefix="grpc")
        self._server = grpc.server(
            self._executor,
            interceptors=[self._boundary],
            options=_SERVER_OPTIONS,
        )
        self._health = health.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        self._services = [health.SERVICE_NAME, reflection.SERVICE_NAME]
        self.host = host
        self.port = self._bind(host, port, credentials)

    @property
    def address(self) -> str:
        """host:port that it listens on."""
        return join_address(self.host, self.port)

    def add(
        self,
        service: str,
        register: Callable[[grpc.Server], None],
        *,
        has_own_guard: bool = False,
    ) -> None:
        """Offer a service: its full name, and what registers it on the server. has_own_guard:
        it knows its callers itself, so the cluster secret is not asked for."""
        if has_own_guard:
            self._boundary.leave_open(service)
        register(self._server)
        self._services.append(service)

    def start(self) -> None:
        """Serve; health says NOT_SERVING until `set_serving(True)`."""
        reflection.enable_server_reflection(self._services, self._server)
        self.set_serving(False)
        self._server.start()

    def set_serving(self, serving: bool) -> None:
        """Set what grpc.health.v1 answers for the whole process and each service."""
        statuses = health_pb2.HealthCheckResponse
        status = statuses.SERVING if serving else statuses.NOT_SERVING
        for service in ("", *self._services):
            self._health.set(service, status)

    def stop(self, grace_s: float = 1.0) -> None:
        """Refuse new calls, give running ones `grace_s` seconds, then end them."""
        self._health.enter_graceful_shutdown()
        self._server.stop(grace_s).wait(grace_s + _END_S)
        self._executor.shutdown(wait=False)
        self._open_services.stop()

    def _bind(self, host: str, port: int, credentials: grpc.ServerCredentials | None) -> int:
        address = join_address(host, port)
        try:
            if credentials is None:
                bound = self._server.add_insecure_port(address)
            else:
                bound = self._server.add_secure_port(address, credentials)
        except RuntimeError as error:
            raise InvalidConfig(
                f"cannot listen on {address}: {error}; choose a free port or 0"
            ) from error
        if not bound:
            raise InvalidConfig(f"cannot listen on {address}; choose a free port or 0")
        return int(bound)


class BoundaryInterceptor(grpc.ServerInterceptor):  # type: ignore[type-arg]
    """Checks the cluster secret and turns errors into status codes, for every call."""

    def __init__(self, secret: str | None, open_services: OpenServices) -> None:
        self._open_services = open_services
        self._secret = None if secret is None else secret.encode()
        self._open: tuple[str, ...] = ()

    def leave_open(self, service: str) -> None:
        """Ask for no secret in calls of a service."""
        self._open = (*self._open, f"/{service}/")

    def intercept_service(
        self, continuation: Callable[[Any], Any], handler_call_details: Any
    ) -> Any:
        """Return the call's handler with the boundary round it."""
        handler = continuation(handler_call_details)
        if handler is None:
            return None
        method: str = handler_call_details.method
        apart = self._open_services.serve(method, handler)
        if apart is not None:
            return apart
        refused = not self._admits(method, handler_call_details.invocation_metadata or ())
        if handler.response_streaming:
            inner = handler.stream_stream if handler.request_streaming else handler.unary_stream
            behaviour = _guard_stream(inner, method, refused)
            build = (
                grpc.stream_stream_rpc_method_handler
                if handler.request_streaming
                else grpc.unary_stream_rpc_method_handler
            )
        else:
            inner = handler.stream_unary if handler.request_streaming else handler.unary_unary
            behaviour = _guard_unary(inner, method, refused)
            build = (
                grpc.stream_unary_rpc_method_handler
                if handler.request_streaming
                else grpc.unary_unary_rpc_method_handler
            )
        return build(behaviour, handler.request_deserializer, handler.response_serializer)

    def _admits(self, method: str, metadata: Sequence[tuple[str, str | bytes]]) -> bool:
        if self._secret is None or method.startswith(self._open):
            return True
        shown = next((value for key, value in metadata if key == SECRET_METADATA), "")
        data = shown.encode() if isinstance(shown, str) else shown
        return hmac.compare_digest(data, self._secret)


def open_channel(target: str, credentials: grpc.ChannelCredentials | None = None) -> grpc.Channel:
    """Return a channel to `target` (host:port) with a connection of its own and keepalive."""
    if credentials is None:
        return grpc.insecure_channel(target, options=_CHANNEL_OPTIONS)
    return grpc.secure_channel(target, credentials, options=_CHANNEL_OPTIONS)


def secret_metadata(secret: str | None) -> tuple[tuple[str, str], ...]:
    """Return the metadata of a call that shows the cluster secret."""
    return () if secret is None else ((SECRET_METADATA, secret),)


def join_address(host: str, port: int) -> str:
    """Return host:port, with brackets round an IPv6 host."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _guard_unary(inner: Callable[..., Any], method: str, refused: bool) -> Callable[..., Any]:
    def behaviour(request: Any, context: Any) -> Any:
        try:
            _require_admitted(refused)
            return inner(request, context)
        except grpc.RpcError:
            raise
        except Exception as error:  # noqa: BLE001 - the server's boundary
            _abort(error, context, method)

    return behaviour


def _guard_stream(inner: Callable[..., Any], method: str, refused: bool) -> Callable[..., Any]:
    def behaviour(request: Any, context: Any) -> Iterator[Any]:
        try:
            _require_admitted(refused)
            yield from inner(request, context)
        except grpc.RpcError:
            raise
        except Exception as error:  # noqa: BLE001 - the server's boundary
            _abort(error, context, method)

    return behaviour


def _require_admitted(refused: bool) -> None:
    if refused:
        raise Unauthenticated(
            "the cluster secret is missing or wrong: give this process the secret of the gateway"
        )


def _abort(error: Exception, context: Any, method: str) -> None:
    if isinstance(error, GlinthawkError):
        known = error
    else:
        _log.error("call_failed", method=method, exc_info=error)
        known = InvariantBroken(f"{method} failed: {type(error).__name__}; see this process's log")
    number, status = status_of(known)
    context.set_trailing_metadata(((ERROR_METADATA, str(number)),))
    context.abort(status, str(known)[:_MAX_DETAILS])
