"""The gateway's two doors against the batch command, on the same work in the same run.

    batch    `glinthawk batch`: from the first admission to the last answer
    batches  a batch through the API: from in_progress to completed, as a client sees it
    streams  all prompts at once, each a stream: from the first call to the last event

Each runs over one stage and one attention worker that start anew. What a door adds before its
work begins (upload, validation) is shown as `wall_s`, not counted.
"""

import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from glinthawk.bench.batch import (
    BatchBenchSettings,
    EngineFailed,
    Workload,
    build_bodies,
    build_input,
    build_workload,
    run_batch_command,
)
from glinthawk.bench.client import ApiClient, Patient
from glinthawk.bench.environment import describe_environment
from glinthawk.bench.fleet import FleetFailed, Life, find_ports, wait_until
from glinthawk.bench.peer_runner import KV_GIB
from glinthawk.models.hf_tokenizer import load_tokenizer
from glinthawk.models.source import DEFAULT_MODEL, resolve_model

ENDPOINT = "/v1/chat/completions"
BATCH, BATCHES, STREAMS = "batch", "batches", "streams"
GOALS = {f"{BATCHES} / {BATCH}": 0.9, f"{STREAMS} / {BATCH}": 0.9}

_START_S = 120.0
_STUCK_S = 600.0
_SILENCE_S = 600.0


@dataclass(frozen=True)
class ServeBenchSettings:
    """What is measured; prompts and tokens as in the batch benchmark."""

    prompts: int = 256
    tokens: int = 128
    runs: int = 3
    dtype: str = "bfloat16"
    model: str = DEFAULT_MODEL


def run_serve_bench(settings: ServeBenchSettings) -> dict[str, Any]:
    """Measure, and return environment, settings, samples, ratios and goals as JSON can hold them.

    Raises:
        InvalidConfig: a setting is wrong, or the model is not there.
        EngineFailed: a door did not do all of the work.
        FleetFailed: `glinthawk up` does not come up, or does not end.
    """
    batch_settings = BatchBenchSettings(peers="", **asdict(settings))
    workload = build_workload(batch_settings, load_tokenizer(resolve_model(settings.model)))
    doors: dict[str, Callable[[Path], dict[str, Any]]] = {
        BATCH: lambda work: run_batch_command(workload, work),
        BATCHES: lambda work: _run_batches(workload, work),
        STREAMS: lambda work: _run_streams(workload, work),
    }
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in doors}
    with tempfile.TemporaryDirectory(prefix="glinthawk-serve-") as folder:
        for number in range(settings.runs):
            for name in [*doors][number % len(doors) :] + [*doors][: number % len(doors)]:
                work = Path(folder) / f"{name}-{number}"
                work.mkdir()
                runs[name].append(_check(name, doors[name](work), workload.num_tokens))
    samples = [_summarise(name, done) for name, done in runs.items()]
    ratios = _compare(samples)
    return {
        "benchmark": "serve",
        "environment": describe_environment("torch", "fastapi", "uvicorn"),
        "settings": asdict(settings),
        "workload": {
            "num_prompt_tokens": sum(map(len, workload.prompts)),
            "num_generated_tokens": workload.num_tokens,
            "threads": workload.threads,
        },
        "samples": samples,
        "ratios": ratios,
        "goals": [
            {**one, "goal": GOALS[one["name"]], "holds": one["value"] >= GOALS[one["name"]]}
            for one in ratios
            if one["name"] in GOALS
        ],
    }


def _run_batches(workload: Workload, work: Path) -> dict[str, Any]:
    """Run the work as one batch of the API."""
    with _up(workload, work) as api:
        patient = Patient(api, _START_S)
        began = time.monotonic()
        batch_id = patient.create_batch_once(build_input(workload).encode(), ENDPOINT, "bench")
        statuses = ("validating",)
        wait_until(
            lambda: api.batch(batch_id)["status"] not in statuses, "the batch is valid", _START_S
        )
        admitted = time.monotonic()
        batch = patient.wait_for_batch(batch_id, stuck_s=_STUCK_S)
        ended = time.monotonic()
        lines = patient.read_results(batch)
    usages = [line["response"]["body"].get("usage", {}) for line in lines]
    return {
        "run_s": ended - admitted,
        "wall_s": ended - began,
        "num_generated_tokens": sum(usage.get("completion_tokens", 0) for usage in usages),
    }


def _run_streams(workload: Workload, work: Path) -> dict[str, Any]:
    """Run the work as streams that are all open at once."""
    bodies = build_bodies(workload)
    with _up(workload, work) as api, ThreadPoolExecutor(len(bodies)) as pool:
        began = time.monotonic()
        streams = list(pool.map(api.stream, itertools.repeat(ENDPOINT), bodies))
        run_s = time.monotonic() - began
    return {
        "run_s": run_s,
        "wall_s": run_s,
        "first_token_s": statistics.median(stream.first_token_s for stream in streams),
        "num_generated_tokens": sum(stream.tokens for stream in streams),
    }


@contextmanager
def _up(workload: Workload, work: Path) -> Iterator[ApiClient]:
    """Yield the API of `glinthawk up`, with tiers as the batch command has them."""
    settings = workload.settings
    http, listen = find_ports(2)
    options = {
        "--model": settings.model,
        "--dtype": settings.dtype,
        "--stages": "1",
        "--attention-workers": "1",
        "--kv-memory": f"{KV_GIB}GiB",
        "--port": str(http),
        "--listen": f"127.0.0.1:{listen}",
        "--data-dir": str(work / "data"),
        "--max-key-requests": str(max(256, settings.prompts)),
        "--max-key-tokens": str(1 << 30),
    }
    arguments = [text for pair in options.items() for text in pair]
    life = Life("up", ["up", *arguments], work / "up.log")
    api = ApiClient(http, timeout_s=_SILENCE_S)

    def is_ready() -> bool:
        if life.is_over:
            raise FleetFailed(life.describe_end())
        return api.is_ready()

    try:
        wait_until(is_ready, "`glinthawk up` is ready", _START_S)
        yield api
    finally:
        is_gone = life.terminate()
    if not is_gone:
        raise FleetFailed("`glinthawk up` was asked to end and did not")


def _check(name: str, run: dict[str, Any], num_tokens: int) -> dict[str, Any]:
    generated = run["num_generated_tokens"]
    if generated != num_tokens:
        raise EngineFailed(f"{name}: {generated} tokens where {num_tokens} were asked for")
    return {**run, "tokens_per_second": num_tokens / run["run_s"]}


def _summarise(name: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    figures = ("tokens_per_second", "run_s", "wall_s", "first_token_s")
    medians = {
        figure: statistics.median(run[figure] for run in runs)
        for figure in figures
        if all(figure in run for run in runs)
    }
    return {"door": name, **medians, "runs": runs}


def _compare(samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the doors of the API / the batch command, by medians."""
    speeds = {sample["door"]: sample["tokens_per_second"] for sample in samples}
    ours = speeds.pop(BATCH)
    return [{"name": f"{name} / {BATCH}", "value": speed / ours} for name, speed in speeds.items()]
