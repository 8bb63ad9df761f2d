"""A worker is drained of running sequences: by copying their KV, and by computing it again.

The same processes of this machine, the same prompts, one after the other: all sequences run on one
worker, a second one is empty, and the first one is drained.

    copy       with time: sequences go on while others are copied
    recompute  at once: all are prefilled again from their prompts and tokens so far

Measured are the time until every sequence runs on the second worker, and the pause of each one:
its longest wait for a token meanwhile, as a client sees it.
"""

import random
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from glinthawk.bench.client import ApiClient, CallFailed
from glinthawk.bench.environment import describe_environment
from glinthawk.bench.fleet import Fleet, FleetFailed, FleetSettings, fleet_of, wait_until
from glinthawk.errors import GlinthawkError, InvalidConfig
from glinthawk.models.source import DEFAULT_MODEL

ENDPOINT = "/v1/completions"
COPY, RECOMPUTE = "copy", "recompute"
FROM, TO = "worker-0", "worker-1"
GOAL = 1.0
"""Seconds of computing again / seconds of copying: above it, copying is cheaper."""

_ENOUGH_S = 600.0
_EVENTS_FIRST = 2
_FIRST_ID, _NUM_IDS = 5, 300


@dataclass(frozen=True)
class DrainBenchSettings:
    """What is measured. contexts: lengths of prompts, each a measurement of its own. tokens: most
    that a sequence generates; enough of them that none ends before it is moved."""

    sequences: int = 8
    contexts: tuple[int, ...] = (256, 1024, 2048)
    tokens: int = 4000
    runs: int = 3
    deadline_s: float = 60.0
    model: str = DEFAULT_MODEL
    dtype: str = "bfloat16"
    kv_memory: str = "2GiB"

    def __post_init__(self) -> None:
        least = {"sequences": 1, "tokens": 2, "runs": 1}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise InvalidConfig(f"{name} is {getattr(self, name)}: it must be at least {low}")
        if not self.contexts or min(self.contexts) < 1:
            raise InvalidConfig(f"contexts are {self.contexts}: give lengths of at least 1 token")


@dataclass
class _Stream:
    """One sequence as its client sees it: the times of its events."""

    times: list[float] = field(default_factory=list)
    error: GlinthawkError | None = None

    def longest_wait(self, since: float) -> float:
        """Return the longest time between two events, of which the later came after `since`."""
        pairs = zip(self.times, self.times[1:], strict=False)
        return max((after - before for before, after in pairs if after > since), default=0.0)


def run_drain_bench(settings: DrainBenchSettings) -> dict[str, Any]:
    """Measure, and return environment, settings, samples, ratios and goals as JSON can hold them.

    Raises:
        InvalidConfig: a setting is wrong, or the model is not there.
        FleetFailed: a process does not come up, ended, or something did not happen in time.
    """
    with tempfile.TemporaryDirectory(prefix="glinthawk-drain-") as folder:
        fleet_settings = FleetSettings(
            settings.model,
            Path(folder),
            num_stages=1,
            num_workers=2,
            kv_memory=settings.kv_memory,
            dtype=settings.dtype,
            gateway_options=("--max-key-tokens", str(1 << 30)),
        )
        with fleet_of(fleet_settings) as fleet:
            samples = [
                _measure(fleet, settings, context, way)
                for context in settings.contexts
                for way in (COPY, RECOMPUTE)
            ]
    ratios = [ratio for context in settings.contexts for ratio in _compare(samples, context)]
    return {
        "benchmark": "drain",
        "environment": describe_environment("torch"),
        "settings": asdict(settings),
        "samples": samples,
        "ratios": ratios,
        "goals": [{**one, "goal": GOAL, "holds": one["value"] >= GOAL} for one in ratios],
    }


def _measure(fleet: Fleet, settings: DrainBenchSettings, context: int, way: str) -> dict[str, Any]:
    runs = [_run(fleet, settings, context, way, seed) for seed in range(settings.runs)]
    figures = ("took_s", "pause_s_median", "pause_s_most")
    return {
        "way": way,
        "sequences": settings.sequences,
        "context": context,
        **{name: statistics.median(run[name] for run in runs) for name in figures},
        "tokens": runs[0]["moved_tokens"] or runs[0]["recomputed_tokens"],
        "bytes": runs[0]["moved_bytes"],
        "runs": runs,
    }


def _run(
    fleet: Fleet, settings: DrainBenchSettings, context: int, way: str, seed: int
) -> dict[str, Any]:
    """Drain the first worker once, in one of the two ways."""
    control = fleet.control
    _wait_for(control, "both workers are empty", lambda found: _held(found) == 0)
    _set_drained(control, TO)
    with _streams(fleet.api, settings, context, seed) as streams:
        wait_until(
            lambda: all(len(_check(stream).times) >= _EVENTS_FIRST for stream in streams),
            "every sequence runs",
            _ENOUGH_S,
        )
        control.cancel_drain(TO)
        _wait_for(control, f"{TO} is back", lambda found: _state(found, TO) == "active")
        before = control.inspect()
        began = time.monotonic()
        control.drain(FROM, settings.deadline_s if way == COPY else 0.0)
        _wait_for(control, f"all sequences run on {TO}", lambda found: _is_over(found, streams))
        numbers = [len(stream.times) for stream in streams]
        wait_until(
            lambda: all(
                len(_check(stream).times) > number
                for stream, number in zip(streams, numbers, strict=True)
            ),
            "every sequence goes on",
            _ENOUGH_S,
        )
        waits = [stream.longest_wait(began) for stream in streams]
        ends = [_end_of_pause(stream, began) for stream in streams]
    _wait_for(control, "the streams are over", lambda found: _held(found) == 0)
    after = control.inspect()
    control.cancel_drain(FROM)
    _wait_for(control, f"{FROM} is back", lambda found: _state(found, FROM) == "active")
    counts = ("moved_tokens", "moved_bytes", "recomputed_tokens")
    return {
        "took_s": max(ends) - began,
        "pause_s_median": statistics.median(waits),
        "pause_s_most": max(waits),
        **{name: after[name] - before[name] for name in counts},
    }


@contextmanager
def _streams(
    api: ApiClient, settings: DrainBenchSettings, context: int, seed: int
) -> Iterator[list[_Stream]]:
    """Yield streams that are under way; they are hung up afterwards."""
    chance = random.Random(f"{context} {seed}")
    is_over = threading.Event()
    streams = [_Stream() for _ in range(settings.sequences)]
    threads = []
    for stream in streams:
        body = {
            "model": settings.model,
            "prompt": [_FIRST_ID + chance.randrange(_NUM_IDS) for _ in range(context)],
            "max_tokens": settings.tokens,
            "temperature": 0,
            "ignore_eos": True,
        }
        threads.append(threading.Thread(target=_follow, args=(api, body, stream, is_over)))
    for thread in threads:
        thread.start()
    try:
        yield streams
    finally:
        is_over.set()
        for thread in threads:
            thread.join()


def _follow(
    api: ApiClient, body: dict[str, Any], stream: _Stream, is_over: threading.Event
) -> None:
    def take() -> bool:
        stream.times.append(time.monotonic())
        return not is_over.is_set()

    try:
        api.follow(ENDPOINT, body, take)
        if not is_over.is_set():
            stream.error = CallFailed("a sequence ended before it was moved: raise --tokens")
    except GlinthawkError as error:
        stream.error = error


def _check(stream: _Stream) -> _Stream:
    if stream.error is not None:
        raise FleetFailed(f"a stream failed: {stream.error}")
    return stream


def _end_of_pause(stream: _Stream, since: float) -> float:
    """Return when the longest wait after `since` was over."""
    pairs = [pair for pair in zip(stream.times, stream.times[1:], strict=False) if pair[1] > since]
    return max(pairs, key=lambda pair: pair[1] - pair[0])[1]


def _set_drained(control: ApiClient, worker: str) -> None:
    control.drain(worker, 0.0)
    _wait_for(control, f"{worker} is drained", lambda found: _state(found, worker) == "drained")


def _is_over(found: dict[str, Any], streams: list[_Stream]) -> bool:
    for stream in streams:
        _check(stream)
    workers = {worker["name"]: worker for worker in found["workers"]}
    numbers = (workers[TO]["num_sequences"], found["num_decoding"])
    return bool(workers[FROM]["state"] == "drained" and numbers == (len(streams),) * 2)


def _state(found: dict[str, Any], name: str) -> str:
    return next(str(worker["state"]) for worker in found["workers"] if worker["name"] == name)


def _held(found: dict[str, Any]) -> int:
    return int(found["kv"]["used_bytes"])


def _wait_for(control: ApiClient, what: str, is_true: Any) -> None:
    wait_until(lambda: bool(is_true(control.inspect())), what, _ENOUGH_S)


def _compare(samples: list[dict[str, Any]], context: int) -> list[dict[str, Any]]:
    """Return what computing again costs / what copying costs."""
    ways = {sample["way"]: sample for sample in samples if sample["context"] == context}
    return [
        {
            "name": f"{RECOMPUTE} / {COPY}, {what}, context {context}",
            "value": ways[RECOMPUTE][figure] / ways[COPY][figure],
        }
        for what, figure in (("seconds", "took_s"), ("median pause", "pause_s_median"))
    ]
