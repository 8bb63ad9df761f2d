"""The stage process: the weights that it holds, and the wiring of its parts.

    view --> links --dial--> workers, next stage
    data server --connections--> links --events--> loop (compute thread)

What it shares with an attention worker (listening, signals, membership) is `wire.member`.
"""

import time
from collections.abc import Mapping
from functools import partial

from prometheus_client import CollectorRegistry

from glinthawk.config import StageConfig
from glinthawk.errors import InvalidConfig
from glinthawk.models.config import ModelConfig
from glinthawk.models.load import load_config
from glinthawk.models.memory import check_stage_fits
from glinthawk.models.source import ModelFiles, model_digest, resolve_model
from glinthawk.models.weights import load_stage_weights
from glinthawk.stage.device import ComputePolicy, choose_policy, set_threads
from glinthawk.stage.links import StageLinks
from glinthawk.stage.loop import StageLoop
from glinthawk.stage.prefill import PrefillAttention
from glinthawk.stage.runner import SegmentRunner
from glinthawk.stage.sampler import Sampler
from glinthawk.stage.tail import Tail
from glinthawk.stage.threads import call_apart
from glinthawk.stage.work import Stop
from glinthawk.telemetry.logging import get_logger
from glinthawk.telemetry.metrics import ServiceMetrics
from glinthawk.wire.dial import DialOptions
from glinthawk.wire.member import MemberProcess, Role
from glinthawk.wire.messages import StageOffer, View
from glinthawk.wire.tickets import Hello
from glinthawk.wire.transport import Connection

log = get_logger("stage.server")


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
    if config.device_memory is not None:
        check_stage_fits(
            model,
            config.stage,
            config.num_stages,
            device_memory=config.device_memory,
            itemsize=policy.products.itemsize,
            rows=config.max_rows,
        )
    started = time.monotonic()
    runner = call_apart(partial(_load_runner, files, model, policy, layers[config.stage]))
    log.info(
        "weights_loaded",
        layers=f"{first}-{last - 1}",
        device=str(policy.device),
        dtype=policy.wire.label,
        products=str(policy.products).removeprefix("torch."),
        seconds=round(time.monotonic() - started, 2),
    )
    offer = StageOffer(first, last, model.num_layers, model_digest(files), policy.wire)
    registry = CollectorRegistry()
    role = _StageRole(config, model, runner, policy, offer, metrics=ServiceMetrics(registry))
    return MemberProcess(config, role, registry).serve()


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


class _StageRole(Role):
    """The loop and its links, as the process round them sees them."""

    def __init__(
        self,
        config: StageConfig,
        model: ModelConfig,
        runner: SegmentRunner,
        policy: ComputePolicy,
        offer: StageOffer,
        *,
        metrics: ServiceMetrics,
    ) -> None:
        self._offer = offer
        self._loop = StageLoop(
            runner,
            PrefillAttention(model, policy),
            Tail(runner, Sampler(model.vocab_size, policy.device)) if runner.is_last else None,
            max_rows=config.max_rows,
            metrics=metrics,
        )
        self._links = StageLinks(
            config.name,
            self._loop,
            DialOptions(transport=config.transport, role="stage", secret=config.secret),
            metrics,
        )

    @property
    def offer(self) -> StageOffer:
        """Layers, model and format."""
        return self._offer

    def run(self) -> None:
        """Run steps."""
        self._loop.run()

    def stop(self) -> None:
        """Let `run` return."""
        self._loop.post(Stop())

    def accept(self, connection: Connection, hello: Hello) -> None:
        """Read the gateway's frames, or those of the stage before this one."""
        self._links.accept(connection, hello)

    def follow(self, view: View) -> None:
        """Dial those whom this stage sends to."""
        self._links.follow(view)

    def forget(self) -> None:
        """Close the connections of the run."""
        self._links.close()

    def stats(self) -> Mapping[str, float]:
        """Return what heartbeats carry."""
        return {
            "first_layer": self._offer.first_layer,
            "last_layer": self._offer.last_layer,
            "busy_seconds": self._loop.busy_s,
        }
