"""A real Prometheus over real processes, and the queries of dashboards and alerts put to it."""

import contextlib
import json
import os
import re
import shutil
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dashboards.units import fill
from glinthawk.bench.fleet import find_ports

ROOT = Path(__file__).resolve().parents[1]
CHART = ROOT / "charts" / "glinthawk"
NAMESPACE, DEPLOYMENT = "tests", "tiny"
WINDOW = "15s"
FASTER = 30
"""Alerts run in so much less time than in life: their patience and their windows alike, and so does
scraping, which is every second. What they ask stays the same."""

WAIT_S = 240.0
TEST_S = 1500
"""What a test may take that waits for several alerts, one after the other."""

VARIABLES = {
    "__rate_interval": WINDOW,
    "namespace": NAMESPACE,
    "deployment": DEPLOYMENT,
    "stage_price": "0.35",
    "worker_price": "0.2",
    "gateway_price": "0.05",
}
_DURATION = re.compile(r"(?<=\[)(\d+)m(?=\])")


def find_prometheus() -> str | None:
    """Return the binary from the PATH, or from beside those of the control plane."""
    assets = os.environ.get("KUBEBUILDER_ASSETS", "")
    return shutil.which("prometheus") or shutil.which("prometheus", path=assets)


NO_PROMETHEUS = "prometheus is neither on the PATH nor in KUBEBUILDER_ASSETS"


@dataclass(frozen=True)
class Query:
    """A query of a panel. where: for messages."""

    where: str
    text: str


def read_panel_queries(board: str) -> list[Query]:
    """Return the queries of a dashboard in the chart, its variables filled in."""
    content = json.loads((CHART / "dashboards" / f"{board}.json").read_text(encoding="utf-8"))
    return [
        Query(f"{board}: {panel['title']} {target['refId']}", fill(target["expr"], VARIABLES))
        for panel in content["panels"]
        for target in panel.get("targets", [])
    ]


def read_rules(faster: int = FASTER) -> dict[str, Any]:
    """Return the chart's alerts, in a time that runs so much faster."""
    content: dict[str, Any] = yaml.safe_load((CHART / "rules" / "alerts.yaml").read_text("utf-8"))
    for group in content["groups"]:
        for rule in group["rules"]:
            rule["for"] = _shorten(rule["for"].removesuffix("m"), faster)
            rule["expr"] = _DURATION.sub(lambda found: _shorten(found[1], faster), rule["expr"])
    return content


def _shorten(minutes: str, faster: int) -> str:
    return f"{round(int(minutes) * 60 / faster)}s"


def member_labels(name: str) -> dict[str, str]:
    """Return what monitoring puts on the figures of a process, such as stage-0 or worker-1."""
    kind = name.split("-")[0]
    role = {"worker": "attention"}.get(kind, kind)
    return {"namespace": NAMESPACE, "deployment": DEPLOYMENT, "role": role, "pod": name}


class Prometheus:
    """A Prometheus that scrapes every second.

    Args:
        port: where it answers; url is its address.
        targets: the file from which it learns whom to scrape, if it is told so by `watch`.
    """

    def __init__(self, port: int, targets: Path | None = None) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self._file = targets
        self._targets: dict[int, Mapping[str, str]] = {}

    def watch(self, port: int, labels: Mapping[str, str]) -> None:
        """Scrape a process from now on; labels come to those that its figures have."""
        assert self._file is not None, "it finds by itself whom to scrape"
        self._targets[port] = labels
        content = [
            {"targets": [f"127.0.0.1:{one}"], "labels": dict(known)}
            for one, known in self._targets.items()
        ]
        written = self._file.with_suffix(".new")
        written.write_text(json.dumps(content), encoding="utf-8")
        written.replace(self._file)

    def ask(self, query: str) -> list[dict[str, Any]]:
        """Return the samples of a query now; fail with what is wrong with it."""
        return self._ask("query", {"query": query})

    def ask_range(
        self, query: str, start_s: float, end_s: float, step_s: float
    ) -> list[dict[str, Any]]:
        """Return the series of a query over a time."""
        span = {"start": str(start_s), "end": str(end_s), "step": str(step_s)}
        return self._ask("query_range", {"query": query, **span})

    def _ask(self, path: str, form: Mapping[str, str]) -> list[dict[str, Any]]:
        body = urllib.parse.urlencode(form).encode()
        try:
            with urllib.request.urlopen(f"{self.url}/api/v1/{path}", body, timeout=30) as answer:
                content = json.load(answer)
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{form['query']}: {error.read().decode()}") from error
        result: list[dict[str, Any]] = content["data"]["result"]
        return result

    def has_data(self, query: str) -> bool:
        """Tell whether a query gives a number."""
        return any(sample["value"][1] not in ("NaN", "+Inf", "-Inf") for sample in self.ask(query))

    def is_firing(self, alert: str) -> bool:
        """Tell whether an alert fires."""
        return bool(self.ask(f'ALERTS{{alertname="{alert}", alertstate="firing"}}'))

    def await_data(self, queries: Mapping[str, str]) -> None:
        """Wait until each query, by its name, has given a number once."""
        missing = dict(queries)

        def all_had() -> bool:
            for name, text in list(missing.items()):
                if self.has_data(text):
                    del missing[name]
            return not missing

        with contextlib.suppress(AssertionError):
            wait_until(all_had, "data")
        assert not missing

    def await_firing(self, alert: str) -> None:
        """Wait until an alert fires."""
        wait_until(lambda: self.is_firing(alert), f"{alert} fires")

    def await_over(self, alert: str) -> None:
        """Wait until an alert fires no more."""
        wait_until(lambda: not self.is_firing(alert), f"{alert} is over")

    def is_up(self) -> bool:
        """Tell whether it answers."""
        try:
            self.ask("1")
        except (OSError, AssertionError):
            return False
        return True


@contextmanager
def prometheus_in(folder: Path, binary: str, faster: int = FASTER) -> Iterator[Prometheus]:
    """Yield a Prometheus with the chart's alerts; it scrapes whom it is told to `watch`.

    faster: than in life is the time of the alerts.
    """
    (folder / "rules.yaml").write_text(yaml.safe_dump(read_rules(faster)), encoding="utf-8")
    scrape = {
        "job_name": "glinthawk",
        "honor_labels": True,
        "file_sd_configs": [{"files": [str(folder / "targets.json")], "refresh_interval": "5s"}],
    }
    config = {
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(folder / "rules.yaml")],
        "scrape_configs": [scrape],
    }
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    (folder / "targets.json").write_text("[]", encoding="utf-8")
    (port,) = find_ports(1)
    command = [binary, f"--config.file={folder / 'prometheus.yaml'}"]
    command += [f"--storage.tsdb.path={folder / 'tsdb'}", f"--web.listen-address=127.0.0.1:{port}"]
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        prometheus = Prometheus(port, folder / "targets.json")
        wait_until(prometheus.is_up, "Prometheus answers")
        yield prometheus
    finally:
        process.kill()
        process.wait()


def wait_until(is_true: Callable[[], bool], what: str, within_s: float = WAIT_S) -> None:
    """Wait until something is true, for as long as the slowest machine may take."""
    deadline = time.monotonic() + within_s
    while not is_true():
        assert time.monotonic() < deadline, f"{what}: not within {within_s:g} s"
        time.sleep(0.5)
