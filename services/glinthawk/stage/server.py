"""The stage process: it owns listening, signals and wiring; the work is done in the loop.

membership client --view--> links --dial--> workers, next stage
data server --connections--> links --events--> loop (compute thread)
"""

import signal
import threading
import time

from prometheus_client import CollectorRegistry

from glinthawk import __version__
from glinthawk.config import StageConfig
from glinthawk.errors import InvalidConfig
from glinthawk.models.config import ModelConfig
from glinthawk.models.load import load_config
from glinthawk.models.source import ModelFiles, model_digest, resolve_model
from glinthawk.models.weights import load_stage_weights
from glinthawk.stage.device import ComputePolicy, choose_policy, set_threads
from glinthawk.stage.links import StageLinks
from glinthawk.stage.loop import StageLoop
from glinthawk.stage.prefill import PrefillAttention
from glinthawk.stage.runner import SegmentRunner
from glinthawk.stage.sampler import Sampler
from glinthawk.stage.tail import Tail
from glinthawk.stage.work import Stop
from glinthawk.telemetry.logging import get_logger
from glinthawk.telemetry.metrics import ServiceMetrics, serve_metrics
from glinthawk.wire.control import Description, attach_control
from glinthawk.wire.data_server import DataServer, DataServerOptions
from glinthawk.wire.dial import DialOptions
from glinthawk.wire.grpc_server import GrpcServer, join_address
from glinthawk.wire.membership_client import MembershipClient, MembershipOptions
from glinthawk.wire.messages import Accepted, Heartbeat, Registration, StageOffer, View

log = get_logger("stage.server")

EXIT_OK = 0
EXIT_FAILED = 1


def run_stage(config: StageConfig) -> int:
    """Serve one stage until the gateway or a signal ends it; return the exit code.

    Raises:
        InvalidConfig: the model, the layers or the device do not work.
        UnsupportedModel: the model is none that a stage computes.
    """
    files = resolve_model(config.model, revision=config.revision)
    model = load_config(files)
    layers = model.split_layers(config.num_stages)
    if config.stage >= len(layers):
        raise InvalidConfig(
            f"stage {config.stage} of {len(layers)}: stages count from 0; use at most "
            f"{len(layers) - 1}"
        )
    first, last = layers[config.stage]
    set_threads(config.threads)
    policy = choose_policy(config.device, config.dtype)
    started = time.monotonic()
    runner = _load_runner(files, model, policy, layers[config.stage])
    log.info(
        "weights_loaded",
        layers=f"{first}-{last - 1}",
        device=str(policy.device),
        dtype=policy.wire.label,
        seconds=round(time.monotonic() - started, 2),
    )
    offer = StageOffer(first, last, model.num_layers, model_digest(files), policy.wire)
    return _StageProcess(config, model, policy, runner, offer).serve()


def _load_runner(
    files: ModelFiles, model: ModelConfig, policy: ComputePolicy, layers: tuple[int, int]
) -> SegmentRunner:
    first, last = layers
    weights = load_stage_weights(
        files,
        model,
        first,
        last,
        weight_dtype=policy.products,
        device=policy.device,
        rounded_to=policy.rounded_to,
    )
    return SegmentRunner(model, weights, policy, num_positions=model.context_length)


class _StageProcess:
    """The running process."""

    def __init__(
        self,
        config: StageConfig,
        model: ModelConfig,
        policy: ComputePolicy,
        runner: SegmentRunner,
        offer: StageOffer,
    ) -> None:
        self._config = config
        self._offer = offer
        self._registry = CollectorRegistry()
        self._metrics = ServiceMetrics(self._registry)
        self._ended = False
        self._wake = threading.Event()
        self._reason = "it was stopped"
        self._exit_code = EXIT_OK
        self._loop = StageLoop(
            runner,
            PrefillAttention(model, policy),
            Tail(runner, Sampler(model.vocab_size, policy.device)) if runner.is_last else None,
            max_rows=config.max_rows,
            metrics=self._metrics,
        )
        self._links = StageLinks(
            config.name,
            self._loop,
            DialOptions(transport=config.transport, role="stage", secret=config.secret),
            self._metrics,
        )

    def serve(self) -> int:
        """Listen, join, compute until the end; return the exit code."""
        config = self._config
        server = GrpcServer(config.host, config.grpc_port, secret=config.secret)
        data = DataServer(
            config.name,
            self._links.accept,
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
        serve_metrics(self._registry, config.host, config.metrics_port)
        registration = Registration(
            name=config.name,
            version=__version__,
            address=join_address(config.advertise_host or config.host, server.port),
            offer=self._offer,
            tcp_port=data.tcp_port,
        )
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: self._end())
        compute = threading.Thread(target=self._compute, name="compute", daemon=True)
        compute.start()
        server.set_serving(True)
        while not self._ended:
            self._live_with_gateway(registration)
        self._loop.post(Stop())
        compute.join(5.0)
        data.stop()
        server.stop(0.2)
        return self._exit_code

    def _live_with_gateway(self, registration: Registration) -> None:
        """Be a member of one gateway until it ends, or this process does."""
        membership = MembershipClient(
            registration,
            self,
            self._heartbeat,
            MembershipOptions(self._config.gateway, secret=self._config.secret),
        )
        membership.start()
        self._wake.wait()
        self._wake.clear()
        membership.stop(self._reason)
        self._links.close()

    def _end(self) -> None:
        self._ended = True
        self._wake.set()

    def _compute(self) -> None:
        try:
            self._loop.run()
        finally:
            # Without its compute thread the process is of no use, whatever ended it.
            if not self._ended:
                self._fail("the compute thread ended")

    def _fail(self, reason: str) -> None:
        log.error("stage_failed", reason=reason)
        self._exit_code = EXIT_FAILED
        self._reason = reason
        self._end()

    def _describe(self) -> Description:
        offer = self._offer
        return Description(
            "stage",
            self._config.name,
            __version__,
            stats={"first_layer": offer.first_layer, "last_layer": offer.last_layer},
        )

    def _heartbeat(self) -> Heartbeat:
        return Heartbeat()

    # --- MembershipEvents

    def on_accepted(self, accepted: Accepted) -> None:
        """The gateway took this stage in."""
        log.info("joined", gateway=self._config.gateway, epoch=accepted.epoch)

    def on_view(self, view: View) -> None:
        """Dial those whom this stage sends to, beside the membership's own thread."""
        threading.Thread(target=self._links.follow, args=(view,), name="dial", daemon=True).start()

    def on_refused(self, reason: str) -> None:
        """The gateway does not want this stage."""
        self._fail(f"the gateway at {self._config.gateway} refused this stage: {reason}")

    def on_shutdown(self, reason: str) -> None:
        """The gateway ends: so does a stage that was started with it, others join the next."""
        log.info("gateway_ended", reason=reason)
        if self._config.exit_with_parent:
            self._ended = True
        self._wake.set()

    def on_lost(self, reason: str) -> None:
        """The gateway went away; the client joins again when it is back."""
        log.warning("gateway_lost", gateway=self._config.gateway, reason=reason)
