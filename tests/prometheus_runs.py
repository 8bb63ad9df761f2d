"""A real Prometheus over real processes, and the queries of dashboards and alerts put to it."""

import json
import os
import re
import shutil
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
CHART = ROOT / "charts" / "glinthawk"
NAMESPACE, DEPLOYMENT = "tests", "tiny"
WINDOW = "15s"
WAIT_S = 180.0
VARIABLES = {
    "$__rate_interval": WINDOW,
    "$namespace": NAMESPACE,
    "$deployment": DEPLOYMENT,
    "$stage_price": "0.35",
    "$worker_price": "0.2",
    "$gateway_price": "0.05",
}


def find_prometheus() -> str | None:
    """Return the binary from the PATH, or from beside those of the control plane."""
    assets = os.environ.get("KUBEBUILDER_ASSETS", "")
    return shutil.which("prometheus") or shutil.which("prometheus", path=assets)


@dataclass(frozen=True)
class Query:
    """A query of a panel. where: for messages."""

    where: str
    text: str


def read_panel_queries(board: str) -> list[Query]:
    """Return the queries of a dashboard in the chart, its variables filled in."""
    content = json.loads((CHART / "dashboards" / f"{board}.json").read_text(encoding="utf-8"))
    return [
        Query(f"{board}: {panel['title']} {target['refId']}", fill(target["expr"]))
        for panel in content["panels"]
        for target in panel.get("targets", [])
    ]


def fill(query: str) -> str:
    """Return a panel's query with values for its variables."""
    for variable, value in VARIABLES.items():
        query = query.replace(variable, value)
    return query


def read_rules() -> dict[str, Any]:
    """Return the chart's alerts, with patience and windows that a test can wait for."""
    content: dict[str, Any] = yaml.safe_load((CHART / "rules" / "alerts.yaml").read_text("utf-8"))
    for group in content["groups"]:
        for rule in group["rules"]:
            rule["for"] = "1s"
            rule["expr"] = re.sub(r"\[\d+m\]", f"[{WINDOW}]", rule["expr"])
    return content


class Prometheus:
    """A Prometheus that scrapes every second. port: where it answers; url: of its API."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"

    def ask(self, query: str) -> list[dict[str, Any]]:
        """Return the samples of a query now; fail with what is wrong with it."""
        body = urllib.parse.urlencode({"query": query}).encode()
        try:
            with urllib.request.urlopen(f"{self.url}/api/v1/query", body, timeout=30) as answer:
                content = json.load(answer)
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{query}: {error.read().decode()}") from error
        result: list[dict[str, Any]] = content["data"]["result"]
        return result

    def has_data(self, query: str) -> bool:
        """Tell whether a query gives a number."""
        return any(sample["value"][1] not in ("NaN", "+Inf", "-Inf") for sample in self.ask(query))

    def is_firing(self, alert: str) -> bool:
        """Tell whether an alert fires."""
        return bool(self.ask(f'ALERTS{{alertname="{alert}", alertstate="firing"}}'))

    def is_up(self) -> bool:
        """Tell whether it answers."""
        try:
            self.ask("1")
        except (OSError, AssertionError):
            return False
        return True


@contextmanager
def prometheus_over(
    targets: Mapping[str, int], folder: Path, port: int, binary: str
) -> Iterator[Prometheus]:
    """Yield a Prometheus that scrapes processes: by name, such as stage-0, the port of each.

    Their figures get the labels that a deployment's have.
    """
    (folder / "rules.yaml").write_text(yaml.safe_dump(read_rules()), encoding="utf-8")
    scrapes = [
        {
            "targets": [f"127.0.0.1:{target}"],
            "labels": {
                "namespace": NAMESPACE,
                "deployment": DEPLOYMENT,
                "role": {"worker": "attention"}.get(name.split("-")[0], name.split("-")[0]),
                "pod": name,
            },
        }
        for name, target in targets.items()
    ]
    config = {
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(folder / "rules.yaml")],
        "scrape_configs": [{"job_name": "glinthawk", "static_configs": scrapes}],
    }
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    command = [binary, f"--config.file={folder / 'prometheus.yaml'}"]
    command += [f"--storage.tsdb.path={folder / 'tsdb'}", f"--web.listen-address=127.0.0.1:{port}"]
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        prometheus = Prometheus(port)
        wait_until(prometheus.is_up, "Prometheus answers")
        yield prometheus
    finally:
        process.kill()
        process.wait()


def wait_until(is_true: Any, what: str) -> None:
    """Wait until something is true, for as long as the slowest machine may take."""
    deadline = time.monotonic() + WAIT_S
    while not is_true():
        assert time.monotonic() < deadline, f"{what}: not within {WAIT_S:g} s"
        time.sleep(0.5)
