"""Draws every panel of every dashboard from a real Prometheus, and writes docs/dashboards.md.

    make pictures

Two worlds are watched for a few minutes each: a small deployment on this machine, with batches,
calls that go well and calls that do not, and a worker that is lost and replaced; and the operator
on a control plane of its own, with resources that grow, shrink, and cannot work.
"""

import shutil
import sys
import tempfile
import time
from pathlib import Path

from dashboards.__main__ import BOARDS
from dashboards.page import FOLDER, picture_name, render_page
from dashboards.parts import Plot
from dashboards.pictures import Line, draw
from dashboards.units import fill, name_line
from prometheus_runs import ROOT, VARIABLES, Prometheus, wait_until
from watched_fleet import Live, Size, calling, under_load, watched
from watched_operator import GIB, WatchedOperator, watched_operator

STEP_S = 2.0
SETTLE_S = 20.0
"""Until rates have a whole window of figures."""

FLEET_S = 150.0
MODEL = {"hidden_size": 256, "intermediate_size": 1024}


def main() -> None:
    """Draw everything."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        pictures, fleet, operator = (home / name for name in ("pictures", "fleet", "operator"))
        for one in (pictures, fleet, operator):
            one.mkdir()
        draw_fleet(fleet, pictures)
        draw_operator(operator, pictures)
        shutil.rmtree(ROOT / "docs" / FOLDER, ignore_errors=True)
        shutil.copytree(pictures, ROOT / "docs" / FOLDER)
    (ROOT / "docs" / "dashboards.md").write_text(render_page(BOARDS), encoding="utf-8")


def draw_fleet(folder: Path, pictures: Path) -> None:
    """Draw the dashboards of a deployment."""
    with watched(folder, Size(kv_memory="4MiB", model=MODEL)) as live:
        start_s = time.time() + SETTLE_S
        work_fleet(live)
        for board in ("throughput", "tiers"):
            draw_board(board, live.prometheus, start_s, pictures)


def draw_operator(folder: Path, pictures: Path) -> None:
    """Draw the operator's dashboard."""
    with watched_operator(folder) as operator:
        start_s = time.time()
        work_operator(operator)
        draw_board("operator", operator.prometheus, start_s, pictures)


def work_fleet(live: Live) -> None:
    """Let a deployment be busy, and lose a worker halfway."""
    with calling(live), under_load(live, 300, max_tokens=120):
        time.sleep(SETTLE_S + FLEET_S / 2)
        lost = live.fleet.crew().workers[0]
        live.fleet.life(lost).kill()
        live.fleet.remove(lost)
        live.fleet.join_worker()
        wait_until(lambda: live.num_active() == live.size.num_workers, "the new worker")
        live.watch(live.fleet.crew().workers[-1])
        time.sleep(FLEET_S / 2)


def work_operator(operator: WatchedOperator) -> None:
    """Let resources grow and shrink, and one of them name an image that there is not."""
    operator.apply("llama")
    operator.apply("qwen", memoryTier={"scaling": {"minReplicas": 2, "maxReplicas": 6}})
    operator.await_status("qwen", "Ready", "True")
    time.sleep(SETTLE_S)
    operator.fleet.demanded = 2 * GIB
    time.sleep(2 * SETTLE_S)
    operator.apply("mistral", gpuTier={"stages": 2, "device": "cpu", "image": "missing:1"})
    operator.await_status("mistral", "Degraded", "True")
    operator.proxy.share = 0.5  # an API server with other work
    for demanded in (0, 4 * GIB, 0, 4 * GIB):
        operator.fleet.demanded = demanded
        time.sleep(SETTLE_S / 2)
    operator.proxy.share = 0.0
    operator.fleet.demanded = 0
    time.sleep(2 * SETTLE_S)


def draw_board(name: str, prometheus: Prometheus, start_s: float, folder: Path) -> None:
    """Draw the panels of a board with what there was since a moment."""
    end_s = time.time()
    for row in BOARDS[name].rows:
        for plot in row.plots:
            lines = fetch(plot, prometheus, start_s, end_s)
            draw(plot, lines, end_s - start_s, folder / picture_name(name, row, plot))
            print(f"{name}: {plot.title}: {len(lines)} lines", file=sys.stderr)


def fetch(plot: Plot, prometheus: Prometheus, start_s: float, end_s: float) -> list[Line]:
    """Return what a panel's queries gave over a time; what is no number is left out."""
    lines = []
    for series in plot.series:
        for one in prometheus.ask_range(fill(series.query, VARIABLES), start_s, end_s, STEP_S):
            points = [
                (float(at) - start_s, float(value))
                for at, value in one["values"]
                if value not in ("NaN", "+Inf", "-Inf")
            ]
            if points:
                times, values = zip(*points, strict=True)
                lines.append(Line(name_line(series.legend, one["metric"]), times, values))
    return lines


if __name__ == "__main__":
    main()
