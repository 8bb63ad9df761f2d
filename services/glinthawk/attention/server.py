"""The attention worker process: the kernel that it runs on, and the wiring of its parts.

    data server --connections--> intake --queue--> worker (compute thread) --outboxes--> stages
    gateway --Pages.Send--> sender --queue--> worker;  sender --pages--> other workers

What it shares with a stage (listening, signals, membership) is `wire.member`.
"""

from collections.abc import Mapping

from prometheus_client import CollectorRegistry

from glinthawk.attention.intake import Forget, Intake, NewView, Stop
from glinthawk.attention.interface import AttentionBackend
from glinthawk.attention.selection import is_kernel_built, select_backend
from glinthawk.attention.sender import PageSender, PageWanted
from glinthawk.attention.worker import AttentionWorker
from glinthawk.config import AttentionConfig, count_memory
from glinthawk.core.dtype import DType
from glinthawk.core.geometry import KVGeometry
from glinthawk.errors import InvalidConfig
from glinthawk.telemetry.logging import get_logger
from glinthawk.telemetry.metrics import ServiceMetrics
from glinthawk.wire.dial import DialOptions
from glinthawk.wire.grpc_server import GrpcServer
from glinthawk.wire.member import MemberProcess, Role
from glinthawk.wire.messages import AttentionOffer, View
from glinthawk.wire.pages import attach_pages
from glinthawk.wire.tickets import Hello
from glinthawk.wire.transport import Connection

log = get_logger("attention.server")


def run_attention(config: AttentionConfig) -> int:
    """Serve KV cache and attention until the gateway or a signal ends it; return the exit code.

    Raises:
        InvalidConfig: the kernel, its instruction set, the memory or a port is not to be had.
    """
    _check_memory(config.kv_memory)
    registry = CollectorRegistry()
    kernel = _choose_backend(config)
    log.info("starting", kernel=kernel.label, kv_memory=config.kv_memory)
    role = _AttentionRole(config, kernel, ServiceMetrics(registry))
    return MemberProcess(config, role, registry, drain_s=config.drain_timeout_s).serve()


def _check_memory(kv_memory: int) -> None:
    """Refuse KV memory that is not to be had; pages are taken as they are used."""
    there_is = count_memory()
    if kv_memory > there_is:
        raise InvalidConfig(
            f"kv_memory {kv_memory} is above the {there_is} bytes of memory that this process "
            "may use (the machine's, or its container's limit); lower it, or raise the limit"
        )


class _Kernel:
    """The backend that the configuration means, before the shape of pages is known."""

    def __init__(self, config: AttentionConfig, isa: str | None) -> None:
        self._config = config
        self._isa = isa
        self.label = isa or "reference"

    def build(self, geometry: KVGeometry, num_pages: int) -> AttentionBackend:
        """Make it, with an arena."""
        threads = self._config.threads
        if self._isa is None:
            return select_backend(geometry, num_pages, threads, prefer=self._config.backend)
        from glinthawk.attention.kernel.backend import KernelBackend

        return KernelBackend(geometry, num_pages, threads, isa=self._isa)


def _choose_backend(config: AttentionConfig) -> _Kernel:
    if config.backend == "reference" or not is_kernel_built():
        if config.backend == "kernel" or config.isa is not None:
            raise InvalidConfig(
                f"backend {config.backend!r} with isa {config.isa!r}: the compiled kernel is "
                "needed and not there; install a C++17 compiler and reinstall, or use --backend "
                "auto without --isa"
            )
        return _Kernel(config, None)
    from glinthawk.attention.kernel.backend import supported_isas

    isas = supported_isas()
    if config.isa is not None and config.isa not in isas:
        raise InvalidConfig(
            f"isa {config.isa!r} is not supported here; this machine has {', '.join(isas)}"
        )
    return _Kernel(config, config.isa or isas[0])


class _AttentionRole(Role):
    """The worker and its intake, as the process round them sees them."""

    def __init__(self, config: AttentionConfig, kernel: _Kernel, metrics: ServiceMetrics) -> None:
        self._name = config.name
        self._offer = AttentionOffer(config.kv_memory, tuple(DType), kernel.label)
        self._worker = AttentionWorker(config.name, config.kv_memory, kernel.build, metrics)
        self._intake = Intake(metrics)
        self._geometry: KVGeometry | None = None
        self._sender = PageSender(
            config.name,
            self._intake.post,
            lambda: None if self._geometry is None else self._geometry.page_tokens,
            DialOptions(transport=config.transport, role="attention", secret=config.secret),
        )

    @property
    def offer(self) -> AttentionOffer:
        """Memory, formats and kernel."""
        return self._offer

    def run(self) -> None:
        """Serve what comes in, in its order."""
        while True:
            item = self._intake.take()
            if isinstance(item, Stop):
                return
            if isinstance(item, NewView):
                self._worker.begin(item.epoch, item.geometry)
            elif isinstance(item, Forget):
                self._worker.forget()
            elif isinstance(item, PageWanted):
                item.settle(self._worker)
            else:
                self._worker.handle(item)

    def stop(self) -> None:
        """Let `run` return, and close the connections."""
        self._intake.post(Stop())
        self._intake.close()
        self._sender.close()

    def attach(self, server: GrpcServer) -> None:
        """Offer to send pages."""
        attach_pages(server, self._sender.send)

    def accept(self, connection: Connection, hello: Hello) -> None:
        """Read a stage's frames."""
        self._intake.accept(connection, hello)

    def follow(self, view: View) -> None:
        """The shape of the pages is known: the arena can be made. Stages dial this worker.

        What it holds stays while its own epoch does, whoever else comes and goes."""
        own = next((member for member in view.workers if member.name == self._name), None)
        self._sender.follow(view)
        if own is not None and view.geometry is not None:
            self._geometry = view.geometry
            self._intake.post(NewView(own.epoch, view.geometry))

    def forget(self) -> None:
        """Drop all sequences; the stages' connections end with their run."""
        self._intake.post(Forget())
        self._sender.close()

    def stats(self) -> Mapping[str, float]:
        """Return what heartbeats carry."""
        stats = self._worker.stats()
        return {
            "kv_used_bytes": stats.kv_used_bytes,
            "kv_capacity_bytes": stats.kv_capacity_bytes,
            "busy_seconds": stats.busy_s,
            "dropped_frames": stats.num_dropped,
            "queue_depth": self._intake.depth,
        }
