"""Who says how many workers there are: the operator, `kubectl scale`, or an HPA."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.api import Api
from cluster.live import NAME, NAMESPACE, CommandFailed, Deployment, kubectl, read, wait_until
from cluster.metrics_runs import DEMANDED, offer_metrics, prometheus_over_pods
from cluster.work import Lines, begin_batch, finish_batch
from prometheus_runs import find_prometheus

QUICK = {"stabilizationWindowSeconds": 15, "periodSeconds": 5, "drainTimeoutSeconds": 60}
BY_OTHERS = {"memoryTier": {"replicas": 1, "scaling": {"mode": "External", "scaleDown": QUICK}}}
BY_ITSELF = {"memoryTier": {"scaling": {"scaleDown": QUICK}}}
CLUSTER = os.environ.get("CLUSTER", "")

HPA = {
    "apiVersion": "autoscaling/v2",
    "kind": "HorizontalPodAutoscaler",
    "metadata": {"name": NAME},
    "spec": {
        "scaleTargetRef": {
            "apiVersion": "glinthawk.dev/v1alpha1",
            "kind": "GlinthawkDeployment",
            "name": NAME,
        },
        "minReplicas": 1,
        "maxReplicas": 3,
        "metrics": [
            {
                "type": "External",
                "external": {
                    "metric": {
                        "name": DEMANDED,
                        "selector": {"matchLabels": {"deployment": NAME}},
                    },
                    "target": {"type": "AverageValue", "averageValue": "52Mi"},
                },
            }
        ],
        "behavior": {"scaleDown": {"stabilizationWindowSeconds": 10}},
    },
}


def scale(replicas: int) -> None:
    kubectl("scale", f"glinthawkdeployment/{NAME}", f"--replicas={replicas}")


def test_in_auto_kubectl_scale_is_refused_and_told_what_to_change(demo: Deployment) -> None:
    with pytest.raises(CommandFailed) as caught:
        scale(2)
    assert "while scaling.mode is Auto" in str(caught.value)
    assert "set scaling.mode to Manual or External" in str(caught.value)
    assert read("glinthawkdeployment", NAME)["spec"]["memoryTier"].get("replicas") is None


def test_in_external_kubectl_scale_is_followed_and_apply_brings_auto_back(
    demo: Deployment, api: Api, lines: Lines, label: str
) -> None:
    demo.apply(BY_OTHERS)
    scale(2)
    demo.await_workers(2)
    demo.await_settled()
    # Much is demanded, and Auto would grow to three.
    finish_batch(api, begin_batch(api, lines[:60], label))
    assert demo.memory_tier["desiredReplicas"] == 2
    with pytest.raises(CommandFailed) as caught:
        scale(4)
    assert "within scaling.minReplicas and maxReplicas" in str(caught.value)
    demo.apply(BY_ITSELF)
    assert read("glinthawkdeployment", NAME)["spec"]["memoryTier"].get("replicas") is None
    demo.await_workers(1)
    demo.await_settled()


@pytest.fixture
def external_metrics(demo: Deployment, tmp_path: Path) -> Iterator[None]:
    """Let HPAs ask for the demo's figures."""
    binary = find_prometheus()
    if not CLUSTER or binary is None:
        pytest.skip(
            "CLUSTER names no command that serves metrics to HPAs, or prometheus is missing"
        )
    with prometheus_over_pods(tmp_path, NAMESPACE, binary) as prometheus:
        series = f'{DEMANDED}{{deployment="{NAME}",role="gateway"}}'
        wait_until(lambda: prometheus.has_data(series), "the gateway's figures are scraped")
        offer_metrics(tmp_path, prometheus, CLUSTER)
        yield
        kubectl("delete", "apiservice", "v1beta1.external.metrics.k8s.io")


def test_an_hpa_on_kv_demand_drives_the_tier_and_auto_refuses_it(
    demo: Deployment, external_metrics: None, api: Api, lines: Lines, label: str
) -> None:
    demo.apply(BY_OTHERS)
    demo.await_workers(1)
    kubectl("apply", "-f", "-", stdin=json.dumps(HPA))
    try:
        batch_id = begin_batch(api, lines, label)
        demo.await_workers(3)
        finish_batch(api, batch_id)
        demo.await_workers(1)
        demo.apply(BY_ITSELF)
        begin_batch(api, lines[:120], f"{label}-auto")
        wait_until(lambda: "FailedGetScale" in reasons(), "the HPA finds nothing to write")
        demo.await_workers(3)
    finally:
        kubectl("delete", "hpa", NAME)
    demo.await_workers(1)


def reasons() -> set[str]:
    """Return what is said of the HPA, by Events."""
    selector = "involvedObject.kind=HorizontalPodAutoscaler"
    return {one["reason"] for one in read("events", "--field-selector", selector)}
