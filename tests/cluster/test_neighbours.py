"""Two resources with the longest names, side by side in a namespace that allows little: restricted
pods, a quota. Then both go, and leave what they were told to keep."""

import json
from collections.abc import Iterator

import openai
import pytest

from cluster.api import Api, generate
from cluster.live import OPERATOR, SYSTEM, Deployment, kubectl, read, read_sample, wait_until

ROOM = "glinthawk-neighbours"
LONGEST = 253
READY_S = 400.0
KINDS = (
    "statefulsets,deployments,services,configmaps,serviceaccounts,secrets,poddisruptionbudgets,"
    "networkpolicies,pods,persistentvolumeclaims"
)

NAMESPACE_MANIFEST = {
    "apiVersion": "v1",
    "kind": "Namespace",
    "metadata": {
        "name": ROOM,
        "labels": {
            "pod-security.kubernetes.io/enforce": "restricted",
            "pod-security.kubernetes.io/enforce-version": "latest",
        },
    },
}
QUOTA = {
    "apiVersion": "v1",
    "kind": "ResourceQuota",
    "metadata": {"name": "little"},
    "spec": {
        "hard": {
            "requests.cpu": "2",
            "requests.memory": "4Gi",
            "limits.cpu": "8",
            "limits.memory": "12Gi",
            "pods": "6",
            "persistentvolumeclaims": "4",
        }
    },
}


def build(ending: str, when_deleted: str) -> Deployment:
    """Return a deployment on cpu nodes alone, whose name differs from another's at its end."""
    name = "a" * (LONGEST - len(ending)) + ending
    manifest = read_sample(name, ROOM)
    spec = manifest["spec"]
    spec["model"]["cache"]["whenDeleted"] = when_deleted
    spec["gateway"]["storage"]["whenDeleted"] = when_deleted
    spec["gpuTier"] |= {"stages": 1, "device": "cpu", "nodeSelector": {"pool": "cpu"}}
    return Deployment(manifest)


@pytest.fixture(scope="module")
def neighbours(running: None) -> Iterator[tuple[Deployment, Deployment]]:
    """Yield two deployments that serve."""
    kubectl("apply", "-f", "-", stdin=json.dumps(NAMESPACE_MANIFEST), namespace="default")
    kubectl("apply", "-f", "-", stdin=json.dumps(QUOTA), namespace=ROOM)
    both = build("-keeps", "Retain"), build("-drops", "Delete")
    try:
        for one in both:
            one.apply()
        for one in both:
            print(f"settled after {one.await_settled(READY_S):.0f} s")
        yield both
    finally:
        kubectl("delete", "namespace", ROOM, "--timeout=120s", namespace="default")


Both = tuple[Deployment, Deployment]


def left() -> dict[str, list[str]]:
    """Return what the operator made and is there, by kind."""
    found: dict[str, list[str]] = {}
    for one in read(KINDS, "--selector", "app.kubernetes.io/name=glinthawk", namespace=ROOM):
        found.setdefault(one["kind"], []).append(one["metadata"]["name"])
    return found


def test_each_serves_and_neither_opens_the_others_door(neighbours: Both) -> None:
    apis = [Api(one) for one in neighbours]
    try:
        texts = [api.ask(generate) for api in apis]
        assert texts[0] == texts[1]
        first, second = neighbours
        assert first.api_key() != second.api_key()
        url = apis[1].ask(lambda client: str(client.base_url))
        stranger = openai.OpenAI(base_url=url, api_key=first.api_key(), max_retries=0)
        with stranger, pytest.raises(openai.AuthenticationError):
            generate(stranger)
    finally:
        for api in apis:
            api.close()


def test_every_pod_is_restricted_and_within_the_quota(neighbours: Both) -> None:
    (quota,) = read("resourcequotas", namespace=ROOM)
    assert int(quota["status"]["used"]["pods"]) == 6
    names = left()
    assert len(names["Pod"]) == 6
    assert len(names["StatefulSet"]) == len(names["Secret"]) == 4


def test_a_quota_that_is_full_is_said_with_its_numbers(neighbours: Both) -> None:
    one = neighbours[0]
    one.apply({"memoryTier": {"scaling": {"minReplicas": 2}}})
    wait_until(lambda: "exceeded quota" in one.condition("Degraded").message, "it says so")
    assert "pods" in one.condition("Degraded").message
    assert one.condition("Ready").status == "True"
    one.apply()
    one.await_settled()


def test_what_is_deleted_leaves_the_volumes_that_it_keeps(neighbours: Both) -> None:
    keeps, drops = neighbours
    kubectl("scale", f"deployment/{OPERATOR}", "--replicas=0", namespace=SYSTEM)
    try:
        kubectl(
            "wait",
            "--for=delete",
            "pod",
            "--selector",
            "app.kubernetes.io/name=glinthawk-operator",
            "--timeout=60s",
            namespace=SYSTEM,
        )
        kubectl("delete", "glinthawkdeployment", drops.name, namespace=ROOM)
        wait_until(lambda: len(left().get("Pod", [])) == 3, "half of the pods are gone")
    finally:
        kubectl("scale", f"deployment/{OPERATOR}", "--replicas=1", namespace=SYSTEM)
    kubectl("delete", "glinthawkdeployment", keeps.name, namespace=ROOM)
    wait_until(lambda: set(left()) == {"PersistentVolumeClaim"}, "only volumes are left")
    claims = left()["PersistentVolumeClaim"]
    assert len(claims) == 2
    assert {claim.partition("-")[0] for claim in claims} == {"cache", "data"}
