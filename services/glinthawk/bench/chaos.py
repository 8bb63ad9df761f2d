"""Machines come and go at random under a batch: nothing may be lost, doubled or changed.

A batch runs twice over the same processes of this machine: undisturbed, and while they are killed,
stopped, ended, joined and drained (`disturbances`). As long as events are to come the batch is
given anew, so that each event strikes work. Goals are zeros; that throughput suffers is no
defect, how much it does is shown.
"""

import json
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from glinthawk.bench.client import Patient
from glinthawk.bench.disturbances import Fate
from glinthawk.bench.environment import describe_environment
from glinthawk.bench.fleet import Fleet, FleetFailed, FleetSettings, fleet_of, wait_until
from glinthawk.bench.storm import Storm, Strike
from glinthawk.bench.tally import Answer, Tally, compare, read_answers
from glinthawk.errors import GlinthawkError, InvalidConfig
from glinthawk.models.source import DEFAULT_MODEL
from glinthawk.wire.control import fetch_description

ENDPOINT = "/v1/completions"
STUCK_S = 180.0
"""A batch of which nothing was done for so long hangs."""

AWAY_S = 120.0
EMPTY_S = 30.0
_FEWEST_TOKENS = 0.25
_PROMPT_TOKENS = range(5, 60)
_FIRST_ID, _NUM_IDS = 5, 300


@dataclass(frozen=True)
class ChaosBenchSettings:
    """What happens to what. tokens: most that a request generates; lengths differ.

    kv_memory: of each worker; little of it, so that requests wait for their turn.
    """

    events: int = 60
    seed: int = 0
    requests: int = 200
    tokens: int = 96
    model: str = DEFAULT_MODEL
    stages: int = 2
    attention_workers: int = 7
    kv_memory: str = "32MiB"

    def __post_init__(self) -> None:
        least = {"events": 1, "requests": 1, "tokens": 4, "stages": 1, "attention_workers": 2}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise InvalidConfig(f"{name} is {getattr(self, name)}: it must be at least {low}")


@dataclass
class _Run:
    """What came of a run. rounds: how often the batch was given. took_s: of all rounds."""

    tally: Tally = field(default_factory=Tally)
    rounds: int = 0
    tokens: int = 0
    took_s: float = 0.0
    kv_left_bytes: int = 0
    answers: dict[str, Answer] = field(default_factory=dict)
    strikes: list[Strike] = field(default_factory=list)
    hung: list[str] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.took_s if self.took_s else 0.0


def run_chaos_bench(settings: ChaosBenchSettings) -> dict[str, Any]:
    """Run undisturbed, then disturbed; return everything as JSON can hold it.

    Raises:
        InvalidConfig: a setting is wrong, or the model is not there.
        FleetFailed: the processes do not come up, or the undisturbed run is not whole.
    """
    lines = build_lines(settings)
    console = Console(stderr=True)
    with (
        tempfile.TemporaryDirectory(prefix="glinthawk-chaos-") as name,
        fleet_of(_fleet_settings(settings, Path(name))) as fleet,
    ):
        quiet = _run_undisturbed(fleet, lines)
        console.print(f"undisturbed: {quiet.tokens_per_second:.0f} tokens/s")
        disturbed = _run_disturbed(fleet, lines, quiet.answers, settings, console.print)
    disturbed.hung, disturbed.ended = fleet.hung, fleet.ended
    return _report(settings, quiet, disturbed)


def build_lines(settings: ChaosBenchSettings) -> list[dict[str, Any]]:
    """Return greedy requests of many lengths, by token ids, which every model has."""
    lines = []
    for index in range(settings.requests):
        length = _PROMPT_TOKENS[(7 * index) % len(_PROMPT_TOKENS)]
        share = _FEWEST_TOKENS + (1 - _FEWEST_TOKENS) * ((5 * index) % 16) / 15
        body = {
            "model": settings.model,
            "prompt": [_FIRST_ID + (13 * index + 3 * place) % _NUM_IDS for place in range(length)],
            "max_tokens": max(1, round(share * settings.tokens)),
            "temperature": 0,
            "ignore_eos": True,
            "logprobs": 2,
            "return_token_ids": True,
        }
        line = {"custom_id": f"request-{index}", "method": "POST", "url": ENDPOINT}
        lines.append({**line, "body": body})
    return lines


def _fleet_settings(settings: ChaosBenchSettings, folder: Path) -> FleetSettings:
    return FleetSettings(
        settings.model, folder, settings.stages, settings.attention_workers, settings.kv_memory
    )


def _run_undisturbed(fleet: Fleet, lines: list[dict[str, Any]]) -> _Run:
    run = _Run()
    results = _run_round(fleet, lines, "undisturbed", run)
    run.answers = read_answers(results)
    run.tally = compare(results, [line["custom_id"] for line in lines], run.answers)
    if run.tally != Tally():
        raise FleetFailed(f"the undisturbed run is not whole: {run.tally}; there is no baseline")
    return run


def _run_disturbed(
    fleet: Fleet,
    lines: list[dict[str, Any]],
    undisturbed: dict[str, Answer],
    settings: ChaosBenchSettings,
    show: Callable[[str], None],
) -> _Run:
    run = _Run()
    custom_ids = [line["custom_id"] for line in lines]
    is_calm, failures = threading.Event(), list[GlinthawkError]()

    def work() -> None:
        try:
            while not (run.tally.lost or (run.rounds and is_calm.is_set())):
                results = _run_round(fleet, lines, f"round-{run.rounds}", run)
                run.tally += compare(results, custom_ids, undisturbed)
        except GlinthawkError as error:
            failures.append(error)

    storm = Storm(fleet, lines[0]["body"] | {"max_tokens": 1}, show)
    worker = threading.Thread(target=work, name="work")
    worker.start()
    storm.rage(settings.events, Fate(settings.seed), lambda: not worker.is_alive())
    is_calm.set()
    worker.join()
    if failures:
        raise FleetFailed(f"the work could not be given or read: {failures[0]}") from failures[0]
    run.strikes = storm.strikes
    run.kv_left_bytes = measure_kv_left(fleet)
    return run


def _run_round(
    fleet: Fleet, lines: list[dict[str, Any]], label: str, run: _Run
) -> list[dict[str, Any]]:
    """Give the batch, wait for its end, and return its output and error lines."""
    content = "".join(json.dumps(line) + "\n" for line in lines).encode()
    patient = Patient(fleet.api, AWAY_S)
    began = time.monotonic()
    batch_id = patient.create_batch_once(content, ENDPOINT, label)
    batch = patient.wait_for_batch(batch_id, stuck_s=STUCK_S)
    run.took_s += time.monotonic() - began
    run.rounds += 1
    results = patient.read_results(batch)
    run.tokens += sum(len(answer.tokens) for answer in read_answers(results).values())
    return results


def measure_kv_left(fleet: Fleet) -> int:
    """Return the KV bytes in use once there is no work, by the books and by the workers."""
    left = [0]

    def is_empty() -> bool:
        seen = Patient(fleet.control, AWAY_S).ask(fleet.control.inspect)
        left[0] = seen["kv"]["used_bytes"]
        for worker in seen["workers"]:
            if worker["state"] != "lost" and worker["address"] is not None:
                left[0] += int(fetch_description(worker["address"]).stats["kv_used_bytes"])
        return left[0] == 0

    try:
        wait_until(is_empty, "KV at 0", EMPTY_S)
    except FleetFailed:
        return left[0]
    return 0


# --- what is told of it


def _report(settings: ChaosBenchSettings, quiet: _Run, disturbed: _Run) -> dict[str, Any]:
    tally = asdict(disturbed.tally)
    zeros = {
        **{f"requests {name}": float(count) for name, count in tally.items()},
        "KV bytes left": float(disturbed.kv_left_bytes),
        "processes hung": float(len(disturbed.hung)),
        "processes that ended by themselves": float(len(disturbed.ended)),
        "events not recovered from": float(sum(s.problem is not None for s in disturbed.strikes)),
    }
    kept = disturbed.tokens_per_second / quiet.tokens_per_second
    return {
        "benchmark": "chaos",
        "environment": describe_environment("torch"),
        "settings": asdict(settings),
        "workload": {
            "processes": 1 + settings.stages + settings.attention_workers,
            "events": len(disturbed.strikes),
            "requests_disturbed": disturbed.rounds * settings.requests,
            "undisturbed_tokens_per_second": round(quiet.tokens_per_second, 1),
            "disturbed_tokens_per_second": round(disturbed.tokens_per_second, 1),
        },
        "samples": _summarise(disturbed.strikes),
        "events": [strike.to_document() for strike in disturbed.strikes],
        "hung": disturbed.hung,
        "ended": disturbed.ended,
        "ratios": [{"name": "disturbed / undisturbed tokens per second", "value": kept}],
        "goals": [
            {"name": name, "value": value, "goal": 0.0, "at_most": True, "holds": value == 0}
            for name, value in zeros.items()
        ],
    }


def _summarise(strikes: list[Strike]) -> list[dict[str, Any]]:
    """Return count and recovery times of each kind of event, and of all."""
    kinds: dict[str, list[Strike]] = {}
    for strike in strikes:
        event = strike.disturbance
        for name in (f"{event.part}: {event.action}", "all"):
            kinds.setdefault(name, []).append(strike)
    order = sorted(kinds, key=lambda name: (name == "all", name))
    return [{"event": name, **_measure(kinds[name])} for name in order]


def _measure(strikes: list[Strike]) -> dict[str, Any]:
    times = sorted(one.recovery_s for one in strikes if one.recovery_s is not None)
    return {
        "count": len(strikes),
        "recovery_s_median": statistics.median(times) if times else None,
        "recovery_s_p95": times[min(len(times) - 1, int(0.95 * len(times)))] if times else None,
        "recovery_s_most": times[-1] if times else None,
    }
