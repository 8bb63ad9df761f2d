"""A gateway in the test's process, over stages and attention workers that are real processes.

What a machine does when it dies is done to the processes: they are killed, stopped, started. The
gateway's part is the product's own `Tiers`; the test plays only the door.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from prometheus_client import CollectorRegistry

from glinthawk.core.sampling import SamplingParams
from glinthawk.gateway.detokenize import TextDelta
from glinthawk.gateway.engine import Completion, Engine
from glinthawk.gateway.prompts import Prompt
from glinthawk.gateway.requests import ChoiceRequest, Endpoint, ParsedRequest
from glinthawk.gateway.tiers import LaneSettings, Tiers, TiersSettings
from glinthawk.gateway.workers import WorkerFigures, WorkerState
from glinthawk.models.hf_tokenizer import load_tokenizer
from glinthawk.models.load import load_config
from glinthawk.models.source import model_digest, resolve_model
from glinthawk.telemetry.metrics import ServiceMetrics
from glinthawk.wire.control import fetch_description
from glinthawk.wire.grpc_server import GrpcServer

WAIT_S = 180.0
LEASE_S = 30.0
"""Long, so that a member that a loaded machine holds up is not taken for lost; who is killed is
missed at once."""

SHORT_LEASE_S = 2.0
"""For members that are frozen: nothing but the lease tells."""

VOCABULARY = 300
"""Token ids of prompts are below this, in every tiny model."""


def wait_for(is_true: Callable[[], bool], what: str) -> None:
    """Wait until something is true, for as long as the slowest machine may take."""
    deadline = time.monotonic() + WAIT_S
    while not is_true():
        assert time.monotonic() < deadline, f"{what} did not come true in {WAIT_S:g} s"
        time.sleep(0.01)


def make_requests(num_requests: int, num_tokens: int) -> list[ParsedRequest]:
    """Return requests of all kinds: greedy, sampled with two choices, with penalties."""
    return [_make_request(index, num_tokens) for index in range(num_requests)]


def _make_request(index: int, num_tokens: int) -> ParsedRequest:
    prompt = Prompt(tuple((7 * index + 3 * place) % VOCABULARY + 3 for place in range(5 + index)))
    if index % 4 == 1:
        choices = [SamplingParams(temperature=1.0, seed=index, choice=i) for i in range(2)]
    elif index % 4 == 2:
        choices = [SamplingParams(temperature=0.0, presence_penalty=0.7, repetition_penalty=1.1)]
    else:
        choices = [SamplingParams(temperature=0.0, num_logprobs=2)]
    return ParsedRequest(
        endpoint=Endpoint.COMPLETIONS,
        model="any",
        prompts=(prompt,),
        n=len(choices),
        choices=tuple(
            ChoiceRequest(i, 0, num_tokens, sampling) for i, sampling in enumerate(choices)
        ),
    )


class Process:
    """A stage or an attention worker."""

    def __init__(self, role: str, name: str, gateway: str, log: Path, *options: str) -> None:
        command = [sys.executable, "-m", "glinthawk", role, "--name", name, "--gateway", gateway]
        command += ["--threads", "1", "--log-format", "json", *options]
        with log.open("ab") as output:
            self.popen = subprocess.Popen(
                command, stdout=output, stderr=subprocess.STDOUT, env=os.environ
            )

    def kill(self) -> None:
        """End it as a power failure does."""
        self.popen.kill()
        self.popen.wait()

    def freeze(self) -> None:
        """Stop it without ending it."""
        self.popen.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on as if nothing had been."""
        self.popen.send_signal(signal.SIGCONT)


class Deployment:
    """Tiers of a tiny model: one gateway here, the members as processes."""

    def __init__(
        self,
        model: Path,
        folder: Path,
        *,
        num_stages: int = 1,
        lease_s: float = LEASE_S,
        registry: CollectorRegistry | None = None,
    ) -> None:
        self._model = model
        self._folder = folder
        self._num_stages = num_stages
        self._epoch = 0
        self._lock = threading.Lock()
        self._processes: list[Process] = []
        self.stages: dict[int, Process] = {}
        self.workers: dict[str, Process] = {}
        self.done: dict[int, Completion] = {}
        self.num_tokens = 0
        files = resolve_model(str(model))
        config = load_config(files)
        settings = TiersSettings(
            model=config,
            model_digest=model_digest(files),
            num_stages=num_stages,
            num_workers=0,
            kv_dtype=None,
            max_sequence_length=1024,
            lanes=LaneSettings(2, 64, 4, 256),
            lease_s=lease_s,
        )
        self.server = GrpcServer("127.0.0.1", 0)
        self.tiers = Tiers(
            settings,
            self.server,
            load_tokenizer(files),
            reserve_epochs=self._reserve_epochs,
            on_done=self._on_done,
            metrics=ServiceMetrics(registry or CollectorRegistry()),
        )
        self.server.start()
        self.tiers.start()

    @property
    def engine(self) -> Engine:
        """The engine of the tiers."""
        return self.tiers.engine

    def start_stage(self, index: int = 0, name: str | None = None) -> Process:
        """Start the stage with the index-th part of the layers."""
        name = name or f"stage-{index}"
        options = ("--model", str(self._model), "--dtype", "float32", "--stage", str(index))
        parts = ("--num-stages", str(self._num_stages))
        self.stages[index] = self._start("stage", name, *options, *parts)
        return self.stages[index]

    def start_worker(self, name: str, kv_memory: str = "8MiB") -> Process:
        """Start an attention worker."""
        self.workers[name] = self._start("attention", name, "--kv-memory", kv_memory)
        return self.workers[name]

    def start_engine(self) -> None:
        """Wait for the stages, and begin."""
        self.tiers.start_engine(WAIT_S, lambda: None)

    def submit(self, requests: Sequence[ParsedRequest], first_key: int = 0) -> None:
        """Hand requests over, under the keys from `first_key` on."""
        for key, request in enumerate(requests, start=first_key):
            self.engine.submit(key, request, self._listen)

    def wait_for_tokens(self, num_tokens: int) -> None:
        """Wait until so many tokens have come since the beginning."""
        wait_for(lambda: self.num_tokens >= num_tokens, f"{num_tokens} tokens")

    def wait_for_all(self, num_requests: int) -> None:
        """Wait until all requests are done, and nothing is left of them anywhere."""
        wait_for(lambda: len(self.done) >= num_requests, f"{num_requests} requests")
        wait_for(lambda: self.engine.stats.scheduler.kv_used_bytes == 0, "KV of the books at 0")

    def figures(self, name: str) -> WorkerFigures:
        """Return how a worker stands."""
        return next(item for item in self.engine.stats.workers if item.name == name)

    def measure_busy_s(self, name: str) -> float:
        """Return how long a worker has computed since it was started, as it says itself."""
        return fetch_description(self.tiers.cluster.addresses()[name]).stats["busy_seconds"]

    def wait_for_state(self, name: str, state: WorkerState) -> None:
        """Wait until the engine has a worker in a state."""
        wait_for(
            lambda: any(
                item.name == name and item.state is state for item in self.engine.stats.workers
            ),
            f"{name} is {state.value}",
        )

    def wait_for_empty(self, name: str) -> None:
        """Wait until a worker itself says that it holds no KV."""

        def is_empty() -> bool:
            address = self.tiers.cluster.addresses().get(name)
            return address is not None and fetch_description(address).stats["kv_used_bytes"] == 0

        wait_for(is_empty, f"KV of {name} at 0")

    def close(self) -> None:
        """End the gateway and all processes."""
        self.tiers.stop("the test is over")
        self.server.stop(0.2)
        for process in self._processes:
            process.popen.send_signal(signal.SIGCONT)
            process.kill()

    def _start(self, role: str, name: str, *options: str) -> Process:
        log = self._folder / f"{name}.log"
        self._processes.append(Process(role, name, self.server.address, log, *options))
        return self._processes[-1]

    def _reserve_epochs(self, count: int) -> int:
        with self._lock:
            self._epoch += count
            return self._epoch - count + 1

    def _on_done(self, completion: Completion) -> None:
        assert isinstance(completion.key, int)
        assert completion.key not in self.done, "a request is done once"
        self.done[completion.key] = completion

    def _listen(self, delta: TextDelta) -> None:
        self.num_tokens += len(delta.tokens)


def assert_same_texts(ours: dict[int, Completion], undisturbed: dict[int, Completion]) -> None:
    """Fail unless every text is that of the undisturbed run.

    Greedy texts with logprobs may differ from the first token on whose two best lie closer
    together than float32 sums of another batch shape differ.
    """
    assert Counter(ours.keys()) == Counter(undisturbed.keys())
    for key, expected in sorted(undisturbed.items()):
        completion = ours[key]
        assert completion.error is None, f"request {key}: {completion.error}"
        for choice, wanted in zip(completion.choices, expected.choices, strict=True):
            length = len(wanted.tokens)
            if wanted.logprobs is not None:
                gaps = [item.top[0][1] - item.top[1][1] for item in wanted.logprobs]
                length = next((i for i, gap in enumerate(gaps) if gap < 2e-4), length)
            else:
                assert len(choice.tokens) == length
            assert choice.tokens[:length] == wanted.tokens[:length], f"request {key} differs"
