"""A Prometheus that scrapes a deployment's pods, and the HPA's way to its figures.

The pods are found as the ServiceMonitor's Prometheus finds them, with its labels. It runs beside
the cluster, so it needs one whose pods this machine reaches.
"""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from cluster.live import run
from glinthawk.bench.fleet import find_ports
from prometheus_runs import Prometheus, wait_until

POD = "__meta_kubernetes_pod_label_app_kubernetes_io_"
DEMANDED = "glinthawk_kv_demanded_bytes"

ADAPTER = {
    "externalRules": [
        {
            "seriesQuery": f'{DEMANDED}{{namespace!="",role="gateway"}}',
            "resources": {"overrides": {"namespace": {"resource": "namespace"}}},
            "metricsQuery": "sum(<<.Series>>{<<.LabelMatchers>>}) by (deployment)",
        }
    ]
}


@contextmanager
def prometheus_over_pods(folder: Path, namespace: str, binary: str) -> Iterator[Prometheus]:
    """Yield a Prometheus that scrapes every pod of a namespace that shows metrics."""
    (port,) = find_ports(1)
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(_config(namespace)), encoding="utf-8")
    command = [binary, f"--config.file={folder / 'prometheus.yaml'}"]
    command += [f"--storage.tsdb.path={folder / 'tsdb'}", f"--web.listen-address=0.0.0.0:{port}"]
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        prometheus = Prometheus(port)
        wait_until(prometheus.is_up, "Prometheus answers")
        yield prometheus
    finally:
        process.kill()
        process.wait()


def offer_metrics(folder: Path, prometheus: Prometheus, cluster: str) -> None:
    """Let HPAs of the cluster ask for the deployment's figures."""
    adapter = folder / "adapter.yaml"
    adapter.write_text(yaml.safe_dump(ADAPTER), encoding="utf-8")
    run(*cluster.split(), "metrics", prometheus.url, str(adapter))


def _config(namespace: str) -> dict[str, Any]:
    relabel = [
        _keep(f"{POD}name", "glinthawk"),
        _keep("__meta_kubernetes_pod_container_port_name", "metrics"),
        *(
            {"source_labels": [source], "target_label": target}
            for source, target in (
                (f"{POD}instance", "deployment"),
                (f"{POD}component", "role"),
                ("__meta_kubernetes_namespace", "namespace"),
                ("__meta_kubernetes_pod_name", "pod"),
            )
        ),
    ]
    discovery = {
        "role": "pod",
        "kubeconfig_file": os.environ["KUBECONFIG"],
        "namespaces": {"names": [namespace]},
    }
    return {
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s"},
        "scrape_configs": [
            {
                "job_name": "glinthawk",
                "kubernetes_sd_configs": [discovery],
                "relabel_configs": relabel,
            }
        ],
    }


def _keep(label: str, value: str) -> dict[str, Any]:
    return {"source_labels": [label], "regex": value, "action": "keep"}
