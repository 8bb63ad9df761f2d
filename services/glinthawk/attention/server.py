"""The attention worker process: it owns listening, signals and wiring; the core does the work.

membership client --view--> intake
data server --connections--> intake --queue--> worker (compute thread) --outboxes--> stages
"""

import signal
import threading
import time

from prometheus_client import CollectorRegistry

from glinthawk import __version__
from glinthawk.attention.intake import Forget, Intake, NewView, Stop
from glinthawk.attention.interface import AttentionBackend
from glinthawk.attention.selection import is_kernel_built, select_backend
from glinthawk.attention.worker import AttentionWorker, BuildBackend
from glinthawk.config import AttentionConfig
from glinthawk.core.dtype import DType
from glinthawk.core.geometry import KVGeometry
from glinthawk.errors import CapacityExceeded, InvalidConfig
from glinthawk.telemetry.logging import get_logger
from glinthawk.telemetry.metrics import ServiceMetrics, serve_metrics
from glinthawk.wire.control import Description, attach_control
from glinthawk.wire.data_server import DataServer, DataServerOptions
from glinthawk.wire.grpc_server import GrpcServer, join_address
from glinthawk.wire.membership_client import MembershipClient, MembershipOptions
from glinthawk.wire.messages import Accepted, AttentionOffer, Heartbeat, Registration, View

log = get_logger("attention.server")

EXIT_OK = 0
EXIT_FAILED = 1

REJOIN_AFTER_S = 1.0
"""Pause before looking for the next gateway, while the last one ends."""

PATIENCE_S = 15.0
"""A gateway that is ending may still answer, with a refusal; so long it is asked again."""


def run_attention(config: AttentionConfig) -> int:
    """Serve KV cache and attention until the gateway or a signal ends it; return the exit code.

    Raises:
        InvalidConfig: the kernel, its instruction set or a port is not to be had.
    """
    return _AttentionProcess(config, _choose_backend(config)).serve()


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


class _AttentionProcess:
    """The running process."""

    def __init__(self, config: AttentionConfig, kernel: _Kernel) -> None:
        build: BuildBackend = kernel.build
        self._config = config
        self._registry = CollectorRegistry()
        self._metrics = ServiceMetrics(self._registry)
        self._offer = AttentionOffer(config.kv_memory, tuple(DType), kernel.label)
        self._worker = AttentionWorker(config.name, config.kv_memory, build, self._metrics)
        self._intake = Intake(self._metrics)
        self._changed = threading.Event()
        self._is_ended = False
        self._exit_code = EXIT_OK
        self._patient_until = 0.0

    def serve(self) -> int:
        """Listen, join, compute until the end; return the exit code."""
        config = self._config
        server = GrpcServer(config.host, config.grpc_port, secret=config.secret)
        data = DataServer(
            config.name,
            self._intake.accept,
            DataServerOptions(
                tcp=config.transport != "grpc",
                tcp_host=config.host,
                tcp_port=config.data_port,
                advertised_host=config.advertise_host,
            ),
        )
        data.attach(server)
        attach_control(server, self._describe)
        server.start()
        data.start()
        metrics = serve_metrics(self._registry, config.host, config.metrics_port)
        log.info(
            "listening",
            grpc_port=server.port,
            data_port=data.tcp_port,
            metrics_port=metrics.port,
            kernel=self._offer.kernel,
            kv_memory=config.kv_memory,
        )
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: self._end())
        compute = threading.Thread(target=self._compute, name="compute", daemon=True)
        compute.start()
        server.set_serving(True)
        self._hold_memberships(
            Registration(
                name=config.name,
                version=__version__,
                address=join_address(config.advertise_host or config.host, server.port),
                offer=self._offer,
                tcp_port=data.tcp_port,
            )
        )
        self._intake.post(Stop())
        compute.join(5.0)
        self._intake.close()
        data.stop()
        server.stop(0.2)
        metrics.close()
        return self._exit_code

    def _hold_memberships(self, registration: Registration) -> None:
        """Be a member of one gateway's run after the other, until the process ends."""
        while not self._is_ended:
            client = MembershipClient(
                registration,
                self,
                self._heartbeat,
                MembershipOptions(self._config.gateway, secret=self._config.secret),
            )
            client.start()
            self._changed.wait()
            self._changed.clear()
            client.stop("it was asked to end" if self._is_ended else "its run is over")
            if not self._is_ended:
                self._changed.wait(REJOIN_AFTER_S)
                self._changed.clear()

    def _compute(self) -> None:
        try:
            self._run_worker()
        except (CapacityExceeded, ValueError) as error:
            self._fail(str(error))
        finally:
            # Without its compute thread the process is of no use, whatever ended it.
            if not self._is_ended:
                self._fail("the compute thread ended")

    def _run_worker(self) -> None:
        while True:
            item = self._intake.take()
            if isinstance(item, Stop):
                return
            if isinstance(item, NewView):
                self._worker.begin(item.epoch, item.geometry)
            elif isinstance(item, Forget):
                self._worker.forget()
            else:
                self._worker.handle(item)

    def _end(self) -> None:
        self._is_ended = True
        self._changed.set()

    def _fail(self, reason: str) -> None:
        log.error("attention_failed", reason=reason)
        self._exit_code = EXIT_FAILED
        self._end()

    def _describe(self) -> Description:
        stats = {**self._heartbeat().stats, "kernel": self._offer.kernel}
        return Description("attention", self._config.name, __version__, stats=stats)

    def _heartbeat(self) -> Heartbeat:
        stats = self._worker.stats()
        return Heartbeat(
            {
                "kv_used_bytes": stats.kv_used_bytes,
                "kv_capacity_bytes": stats.kv_capacity_bytes,
                "busy_seconds": stats.busy_s,
                "dropped_frames": stats.num_dropped,
                "queue_depth": self._intake.depth,
            }
        )

    # --- MembershipEvents

    def on_accepted(self, accepted: Accepted) -> None:
        """The gateway took this worker in."""
        self._patient_until = 0.0
        log.info("joined", gateway=self._config.gateway, epoch=accepted.epoch)

    def on_view(self, view: View) -> None:
        """The shape of the pages is known: the arena can be made. Stages dial this worker."""
        if view.geometry is not None:
            self._intake.post(NewView(view.epoch, view.geometry))

    def on_refused(self, reason: str) -> None:
        """The gateway does not want this worker, or is ending."""
        if time.monotonic() < self._patient_until:
            log.info("join_failed", gateway=self._config.gateway, reason=reason)
            self._changed.set()
            return
        self._fail(f"the gateway at {self._config.gateway} refused this worker: {reason}")

    def on_shutdown(self, reason: str) -> None:
        """The run is over: end with it, or forget it and wait for the next."""
        log.info("gateway_ended", gateway=self._config.gateway, reason=reason)
        if self._config.exit_with_parent:
            self._end()
            return
        self._intake.post(Forget())
        self._patient_until = time.monotonic() + PATIENCE_S
        self._changed.set()

    def on_lost(self, reason: str) -> None:
        """The gateway went away; the client joins again when it is back."""
        log.warning("gateway_lost", gateway=self._config.gateway, reason=reason)
