"""The operator at scale: how long reconciles take and what the API server is asked.

    python -m cluster.scale --resources 100 --workers 5 --json scale.json      (PYTHONPATH=tests)

API server, etcd and controllers are real; machines are stand-ins, and one process answers for the
gateways of all resources. The phases:

    made      all resources at once, until they are ready
    rest      nothing happens: what is asked then is asked for ever
    restart   the operator is killed, and another begins with all resources there
    silence   a tenth of the gateways does not answer: whom does it hold up?

Requests are counted by the API server's audit log; times are of the operator's own metrics, read
between their buckets as Prometheus does.
"""

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from cluster.audit import Request, count_by
from cluster.control_plane import NoControlPlane
from cluster.operator_process import open_plane
from cluster.rights import USER
from cluster.world import GIB, World, open_world, sample, wait_until
from glinthawk.bench.environment import describe_environment

RECONCILE = "glinthawk_operator_reconcile_seconds"
WAIT = "glinthawk_operator_queue_wait_seconds"
SETTINGS = {"poll_seconds": "5", "lease_seconds": "15"}
"""The operator's defaults, in place of the short ones of tests."""

SILENT_S = 30.0
READY_S = 900.0
SETTLE_S = 20.0
LEASES = "leases"
Metrics = Mapping[str, Mapping[tuple[str, ...], float]]


@dataclass(frozen=True)
class Scale:
    """What is measured. workers: of each resource. *_s: how long phases last."""

    resources: int = 100
    workers: int = 5
    nodes: int = 50
    rest_s: float = 120.0
    restart_s: float = 30.0
    silence_s: float = 60.0


@dataclass(frozen=True)
class Phase:
    """What was seen of a phase. Times in milliseconds; writes: but those of the lease.

    peak_requests: most in one second. asked: how often, by verb and resource. cores: of the
    operator, on average. memory_mib: resident, at the end. caught_up_s: until each resource had
    been reconciled once, on average.
    """

    name: str
    seconds: float
    reconciles: int
    p50_ms: float
    p95_ms: float
    wait_p95_ms: float
    requests: int
    requests_per_minute: float
    peak_requests: int
    writes: int
    cores: float
    memory_mib: float
    asked: dict[str, int]
    caught_up_s: float | None = None


class Meter:
    """Measures one phase, from when it is made to `stop`."""

    def __init__(self, world: World, *, is_new: bool = False) -> None:
        """is_new: the operator begins with the phase."""
        self._world = world
        world.audit.skip()
        self._metrics: Metrics = {} if is_new else world.operator.scrape()
        self._cpu_s = 0.0 if is_new else _cpu_s(world.operator.pid)
        self._began = time.monotonic()

    @property
    def seconds(self) -> float:
        """Return how long the phase has lasted."""
        return time.monotonic() - self._began

    def stop(self, name: str) -> Phase:
        """End the phase, and return what was seen."""
        seconds = self.seconds
        asked = self._world.audit.read(USER)
        metrics, operator = self._world.operator.scrape(), self._world.operator
        times = _subtract(metrics, self._metrics, f"{RECONCILE}_bucket")
        waits = _subtract(metrics, self._metrics, f"{WAIT}_bucket")
        return Phase(
            name=name,
            seconds=round(seconds, 1),
            reconciles=round(times[("+Inf",)]),
            p50_ms=quantile(times, 0.5),
            p95_ms=quantile(times, 0.95),
            wait_p95_ms=quantile(waits, 0.95),
            requests=len(asked),
            requests_per_minute=round(len(asked) / seconds * 60, 1),
            peak_requests=max(Counter(int(one.time_s) for one in asked).values(), default=0),
            writes=len(list_writes(asked)),
            cores=round((_cpu_s(operator.pid) - self._cpu_s) / seconds, 3),
            memory_mib=round(psutil.Process(operator.pid).memory_info().rss / (1 << 20), 1),
            asked=count_by(asked),
        )


def list_writes(asked: list[Request]) -> list[Request]:
    """Return the writes but those by which the operator holds its lease."""
    return [one for one in asked if one.is_write and one.resource != LEASES]


def quantile(buckets: Mapping[tuple[str, ...], float], share: float) -> float:
    """Return a quantile of a histogram's buckets in milliseconds, as histogram_quantile does."""
    bounds = sorted((float(le), count) for (le,), count in buckets.items())
    wanted = share * bounds[-1][1]
    low, below = 0.0, 0.0
    for bound, count in bounds:
        if count >= wanted and count > below:
            if bound == float("inf"):
                return round(low * 1000, 1)
            return round((low + (bound - low) * (wanted - below) / (count - below)) * 1000, 1)
        low, below = bound, count
    return 0.0


def measure(world: World, scale: Scale) -> list[Phase]:
    """Go through the phases, and return what was seen of each."""
    keys = [("default", f"r{number:03}") for number in range(scale.resources)]
    world.fleet.num_stages = 1
    world.fleet.demanded = int(0.8 * scale.workers * GIB)
    world.operator.start()
    meter = Meter(world, is_new=True)
    items = [_resource(name, scale) for _, name in keys]
    world.apply({"apiVersion": "v1", "kind": "List", "items": items})
    wait_until(lambda: _num_ready(world) == len(keys), "all are ready", READY_S)
    phases = [meter.stop("made")]
    time.sleep(SETTLE_S)
    phases.append(_sit(world, "rest", scale.rest_s))
    world.operator.kill()
    meter = Meter(world, is_new=True)
    world.operator.start()
    wait_until(lambda: _num_reconciles(world) >= len(keys), "all are reconciled", READY_S)
    caught_up_s = meter.seconds
    time.sleep(scale.restart_s)
    phases.append(replace(meter.stop("restart"), caught_up_s=round(caught_up_s, 1)))
    for key in keys[::10]:
        world.fleet.silent_for_s[key] = SILENT_S
    time.sleep(SETTLE_S)
    phases.append(_sit(world, "silence", scale.silence_s))
    world.fleet.silent_for_s.clear()
    return phases


def build_table(phases: list[Phase]) -> str:
    """Return the phases as a table of Markdown."""
    columns: list[tuple[str, Callable[[Phase], object]]] = [
        ("phase", lambda one: one.name),
        ("seconds", lambda one: f"{one.seconds:.0f}"),
        ("reconciles", lambda one: one.reconciles),
        ("reconciles a minute", lambda one: round(60 * one.reconciles / one.seconds)),
        ("p50 ms", lambda one: one.p50_ms),
        ("p95 ms", lambda one: one.p95_ms),
        ("waited, p95 ms", lambda one: one.wait_p95_ms),
        ("API requests", lambda one: one.requests),
        ("a minute", lambda one: one.requests_per_minute),
        ("most in a second", lambda one: one.peak_requests),
        ("writes", lambda one: one.writes),
        ("cores", lambda one: one.cores),
        ("MiB", lambda one: one.memory_mib),
        ("caught up, s", lambda one: "-" if one.caught_up_s is None else one.caught_up_s),
    ]
    rows = [[title for title, _ in columns], ["---"] * len(columns)]
    rows += [[str(show(one)) for _, show in columns] for one in phases]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def run(scale: Scale) -> dict[str, Any]:
    """Measure on a control plane of our own, and return what was seen as JSON can hold it.

    Raises:
        NoControlPlane: its binaries are not there.
    """
    with tempfile.TemporaryDirectory(prefix="glinthawk-scale-") as name:
        folder = Path(name)
        with (
            open_plane(folder) as plane,
            open_world(plane, folder, num_nodes=scale.nodes, settings=SETTINGS) as world,
        ):
            phases = measure(world, scale)
    return {
        "benchmark": "operator-scale",
        "environment": describe_environment("kopf", "kubernetes"),
        "settings": asdict(scale),
        "phases": [asdict(one) for one in phases],
        "table": build_table(phases),
    }


def main() -> int:
    """Measure, print the table, and return the exit code."""
    parser = argparse.ArgumentParser(prog="cluster.scale", description=__doc__.splitlines()[0])
    for name, default in asdict(Scale()).items():
        kind = type(default)
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, default=default)
    parser.add_argument("--json", type=Path, help="also write what was seen to this file")
    options = vars(parser.parse_args())
    json_file = options.pop("json")
    try:
        result = run(Scale(**options))
    except NoControlPlane as reason:
        print(f"error: {reason}", file=sys.stderr)
        return 2
    print(result["table"])
    for phase in result["phases"]:
        print(f"\n{phase['name']}:")
        for what, count in phase["asked"].items():
            print(f"  {count:6} {what}")
    if json_file is not None:
        json_file.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 0


def _sit(world: World, name: str, seconds: float) -> Phase:
    meter = Meter(world)
    time.sleep(seconds)
    return meter.stop(name)


def _resource(name: str, scale: Scale) -> dict[str, Any]:
    manifest = sample(name, minReplicas=scale.workers, maxReplicas=scale.workers + 3)
    manifest["spec"]["gpuTier"]["stages"] = 1
    return manifest


def _num_ready(world: World) -> int:
    found = world.plane.read("ghd")["items"]
    return sum(
        one["type"] == "Ready" and one["status"] == "True"
        for body in found
        for one in body.get("status", {}).get("conditions", [])
    )


def _num_reconciles(world: World) -> float:
    return world.operator.scrape().get("glinthawk_operator_reconciles_total", {}).get(("done",), 0)


def _subtract(after: Metrics, before: Metrics, name: str) -> dict[tuple[str, ...], float]:
    earlier = before.get(name, {})
    return {place: value - earlier.get(place, 0.0) for place, value in after[name].items()}


def _cpu_s(pid: int) -> float:
    used = psutil.Process(pid).cpu_times()
    return float(used.user + used.system)


if __name__ == "__main__":
    sys.exit(main())
