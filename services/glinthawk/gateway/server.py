"""The gateway process: the API, the jobs behind it, and the engine over the tiers.

    HTTP  --> generation --+                         stages, workers --register--> gRPC server
    jobs  --> generation --+--> engine --> tiers <--'
    store <-- files, jobs, results                   control API --> inspection, drains

`glinthawk gateway` waits for stages and workers that run elsewhere; `glinthawk up` starts its
own and starts them again when they end. Either stays until a signal ends it.
"""

import signal
from contextlib import ExitStack
from types import FrameType

from fastapi import FastAPI
from prometheus_client import CollectorRegistry
from rich.console import Console

from glinthawk import __version__
from glinthawk.config import GatewayConfig, UpConfig
from glinthawk.errors import GlinthawkError
from glinthawk.gateway.api.accounts import Accounts
from glinthawk.gateway.api.operations import Operations
from glinthawk.gateway.api.services import ApiLimits, ApiServices
from glinthawk.gateway.control import build_control_app
from glinthawk.gateway.drain_book import DrainBook
from glinthawk.gateway.ending import Ending
from glinthawk.gateway.generation import Generation
from glinthawk.gateway.grpc_api import Doorkeeper, GrpcInference, GrpcJobs, GrpcOperations
from glinthawk.gateway.http.app import build_app
from glinthawk.gateway.http.server import HttpServer
from glinthawk.gateway.inspection import Inspector
from glinthawk.gateway.jobs.metrics import JobMetrics
from glinthawk.gateway.jobs.runner import JobRunner
from glinthawk.gateway.jobs.services import JobServices, JobSettings
from glinthawk.gateway.keys import KeyRing
from glinthawk.gateway.launcher import Launcher
from glinthawk.gateway.requests import ModelContext
from glinthawk.gateway.store.ballast import BALLAST_BYTES
from glinthawk.gateway.store.interface import Store
from glinthawk.gateway.store.sql import open_store
from glinthawk.gateway.tier_settings import build_tiers_settings, check_sizes, longest_sequence
from glinthawk.gateway.tiers import Tiers
from glinthawk.gateway.worker_sizes import SizeBook
from glinthawk.models.config import ModelConfig
from glinthawk.models.hf_tokenizer import load_tokenizer
from glinthawk.models.load import load_config
from glinthawk.models.source import ModelFiles, model_digest, resolve_model
from glinthawk.telemetry.defects import ThreadDefects
from glinthawk.telemetry.logging import get_logger
from glinthawk.telemetry.metrics import ServiceMetrics, serve_metrics
from glinthawk.wire.control import Description, attach_control
from glinthawk.wire.gateway_services import attach_gateway_services
from glinthawk.wire.grpc_server import GrpcServer

log = get_logger("gateway.server")

EXIT_OK = 0
TICK_S = 0.5

HTTP_GRACE_S = 5.0
"""How long open calls may go on when the gateway is stopped."""

JOBS_END_S = 6.0
CONTROL_GRACE_S = 0.5
TIERS_END_S = 2.0
CHILDREN_END_S = 4.0
GRPC_GRACE_S = 0.2
STORE_END_S = 1.0
"""How long the other steps of the end may take; see `ending` for all of them together."""


class _Stopped(Exception):
    """A signal came before everything was up."""


def run_gateway(config: GatewayConfig) -> int:
    """Serve until a signal comes, and return the exit code.

    Raises:
        InvalidConfig: the gateway cannot work as it was configured.
        GlinthawkError: it cannot go on; what is stored stays.
    """
    ending = Ending()

    def end(number: int, frame: FrameType | None) -> None:
        ending.begin()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)
    with ThreadDefects() as defects, ExitStack() as stack:
        try:
            gateway = _Gateway(config, stack, ending, defects)
            gateway.start()
            gateway.serve()
        except _Stopped:
            pass
        finally:
            ending.begin()
    return EXIT_OK


class _Gateway:
    """One gateway. What it starts is ended by `stack`, the last first."""

    def __init__(
        self,
        config: GatewayConfig,
        stack: ExitStack,
        ending: Ending,
        defects: ThreadDefects,
    ) -> None:
        self._config = config
        self._stack = stack
        self._ending = ending
        self._defects = defects
        self._console = Console(stderr=True)
        files: ModelFiles = resolve_model(config.model, revision=config.revision)
        self._model: ModelConfig = load_config(files)
        check_sizes(config, self._model)
        self._registry = CollectorRegistry()
        self._metrics = ServiceMetrics(self._registry)
        self._store: Store = open_store(config.data_dir, ballast_bytes=BALLAST_BYTES)
        stack.callback(lambda: self._store.close(ending.left(STORE_END_S)))
        tokenizer = load_tokenizer(files)
        context = ModelContext(
            tokenizer,
            longest_sequence(config, self._model),
            frozenset(self._model.eos_token_ids),
            vocab_size=self._model.vocab_size,
        )
        self._generation = Generation(context, run_seed=config.seed)
        self._grpc = GrpcServer(*config.listen_address, secret=config.secret)
        drains = DrainBook(self._store)
        self._sizes = SizeBook(self._store)
        self._tiers = Tiers(
            build_tiers_settings(config, self._model, model_digest(files)),
            self._grpc,
            tokenizer,
            reserve_epochs=self._store.reserve_epochs,
            on_done=self._generation.finish,
            metrics=self._metrics,
            drain_left=drains.seconds_left,
            sizes=self._sizes.sizes,
        )
        self._jobs = JobRunner(
            JobServices(self._store, self._generation, JobMetrics(self._registry)),
            JobSettings(config.max_line_bytes, config.model_names),
        )
        self._inspector = Inspector(
            config.model_names[0],
            config.stages,
            self._tiers.cluster,
            self._jobs,
            is_ready=lambda: self._generation.is_ready,
        )
        self._operations = Operations(self._inspector, drains)
        self._keys = (
            KeyRing(self._store, path=config.keys_file) if config.asks_for_grpc_keys else None
        )
        self._launcher: Launcher | None = None
        self._was_ready = False

    # --- start

    def start(self) -> None:
        """Open the doors, then wait for the stages and start the engine and the jobs.

        Raises:
            InvalidConfig: a port is taken, or a process of ours refuses its configuration.
        """
        config, stack, left = self._config, self._stack, self._ending.left
        attach_control(self._grpc, self._describe)
        services, accounts = self._build_services(), Accounts(ApiLimits.of(config))
        self._attach_users(services, accounts)
        self._grpc.start()
        stack.callback(lambda: self._grpc.stop(left(GRPC_GRACE_S)))
        metrics = serve_metrics(self._registry, config.host, config.metrics_port)
        stack.callback(metrics.close)
        self._tiers.start()
        self._sizes.start()
        stack.callback(self._sizes.stop)
        if isinstance(config, UpConfig):
            self._launcher = Launcher(config, gateway_address=self._grpc.address)
            launcher = self._launcher
            stack.callback(lambda: launcher.stop(left(CHILDREN_END_S)))
            self._launcher.start()
        stack.callback(lambda: self._tiers.stop("the gateway ends", left(TIERS_END_S)))
        self._open_doors(build_app(services, accounts), metrics.port)
        engine = self._tiers.start_engine(None, self._look_after)
        self._generation.attach(engine, lambda: self._tiers.is_ready)
        self._inspector.attach(engine)
        self._operations.attach(engine)
        self._grpc.set_serving(True)
        self._jobs.start()
        stack.callback(lambda: self._jobs.stop(left(JOBS_END_S)))

    def _attach_users(self, services: ApiServices, accounts: Accounts) -> None:
        """Offer what users and operators call over gRPC."""
        doorkeeper = Doorkeeper(self._keys)
        attach_gateway_services(
            self._grpc,
            GrpcInference(services, accounts, doorkeeper),
            GrpcJobs(services, doorkeeper),
            GrpcOperations(self._operations),
        )

    def _open_doors(self, app: FastAPI, metrics_port: int) -> None:
        config = self._config
        http = HttpServer(
            app,
            config.host,
            config.port,
            certificate=config.tls_certificate,
            key=config.tls_key,
        )
        http.start()
        self._stack.callback(lambda: http.stop(self._ending.left(HTTP_GRACE_S)))
        control_host = config.listen_address[0] if config.secret is not None else "127.0.0.1"
        control = HttpServer(
            build_control_app(self._operations, config.secret),
            control_host,
            config.control_port,
            option="--control-port",
        )
        control.start()
        self._stack.callback(lambda: control.stop(self._ending.left(CONTROL_GRACE_S)))
        scheme = "http" if config.tls_certificate is None else "https"
        url = f"{scheme}://{config.host}:{http.port}"
        log.info(
            "listening",
            url=url,
            grpc=self._grpc.address,
            control_port=control.port,
            metrics_port=metrics_port,
        )
        self._console.print(f"[bold]{url}[/bold]  the API, OpenAI's: base URL {url}/v1")
        self._console.print(
            f"stages and workers register at {self._grpc.address}; control at "
            f"{control_host}:{control.port}, metrics at {config.host}:{metrics_port}"
        )
        if config.asks_for_grpc_keys and not self._store.list_keys() and config.keys_file is None:
            self._console.print(
                "there is no API key yet: make one with  glinthawk keys create NAME --data-dir "
                f"{config.data_dir}"
            )

    def _build_services(self) -> ApiServices:
        config = self._config
        return ApiServices(
            generation=self._generation,
            store=self._store,
            jobs=self._jobs,
            keys=self._keys if config.asks_for_keys else None,
            limits=ApiLimits.of(config),
            model_names=config.model_names,
            registry=self._registry,
        )

    # --- serve

    def serve(self) -> None:
        """Stay until a signal comes.

        Raises:
            GlinthawkError: the engine, the jobs or another thread cannot go on.
        """
        while not self._ending.wait(TICK_S):
            self._tick()
            failure = self._tiers.engine.failure
            if failure is not None:
                raise failure
            if not self._jobs.is_alive:
                raise GlinthawkError("the job runner ended; the log has the reason")

    def _look_after(self) -> None:
        if self._ending.has_begun:
            raise _Stopped
        self._tick()

    def _tick(self) -> None:
        self._defects.check()
        if self._launcher is not None:
            self._launcher.revive()
        self._inspector.tick()
        is_ready = self._generation.is_ready
        self._metrics.ready.set(is_ready)
        if is_ready != self._was_ready:
            self._was_ready = is_ready
            log.info("ready" if is_ready else "not_ready")
            self._console.print("ready" if is_ready else "not ready: stages or workers are missing")

    # --- what it is

    def _describe(self) -> Description:
        return Description("gateway", "gateway", __version__, stats=self._operations.inspect())
