"""Manifests: what every pod must be, names that fit, and hashes that roll only whom they must."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from factories_operator import GIB, make_context
from glinthawk.config import AttentionConfig, GatewayConfig, StageConfig
from glinthawk_operator.manifests.build import Desired, desired
from glinthawk_operator.manifests.config import build_settings
from glinthawk_operator.manifests.names import MAX_WORKLOAD, child_name, instance_label
from glinthawk_operator.manifests.secrets import build_secrets

COMPONENTS = ("gateway", "stage", "attention")
WANTED = desired(make_context())


def pod_spec(wanted: Desired, component: str) -> dict[str, Any]:
    return dict(wanted.component(component).workload["spec"]["template"]["spec"])


def all_pod_specs(wanted: Desired) -> Iterator[dict[str, Any]]:
    for component in COMPONENTS:
        yield pod_spec(wanted, component)
        yield wanted.component(component).check["spec"]


def test_every_pod_meets_the_restricted_standard() -> None:
    for spec in all_pod_specs(WANTED):
        assert spec["automountServiceAccountToken"] is False
        assert spec["enableServiceLinks"] is False
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in [*spec["containers"], *spec.get("initContainers", [])]:
            security = container["securityContext"]
            assert security["allowPrivilegeEscalation"] is False
            assert security["capabilities"] == {"drop": ["ALL"]}
            assert security["readOnlyRootFilesystem"] is True
            assert {"cpu", "memory"} <= set(container["resources"]["requests"])


def test_children_go_with_their_resource() -> None:
    parts = [one.config_map for one in WANTED.components]
    parts += [one.workload for one in WANTED.components]
    for manifest in [*WANTED.supporting, *parts]:
        (owner,) = manifest["metadata"]["ownerReferences"]
        assert owner["uid"] == "uid-demo"
        assert owner["controller"] is True


@pytest.mark.parametrize(("device", "limits"), [("cpu", None), ("cuda", "1"), ("auto", "1")])
def test_gpus_are_asked_for_unless_stages_compute_on_the_cpu(
    device: str, limits: str | None
) -> None:
    spec = pod_spec(desired(make_context(gpuTier={"device": device})), "stage")
    resources = spec["containers"][0]["resources"]
    assert resources.get("limits", {}).get("nvidia.com/gpu") == limits
    assert "nvidia.com/gpu" not in spec["initContainers"][0]["resources"].get("limits", {})


def test_a_workers_memory_is_its_kv_and_overhead_and_bounded() -> None:
    resources = pod_spec(WANTED, "attention")["containers"][0]["resources"]
    assert resources["requests"]["memory"] == resources["limits"]["memory"]
    assert resources["limits"]["memory"] == f"{1024 + 384}Mi"


def test_replicas_of_workers_are_left_to_scaling() -> None:
    assert "replicas" not in WANTED.component("attention").workload["spec"]
    assert WANTED.component("stage").workload["spec"]["replicas"] == 2


def test_pods_stay_longer_than_their_drain() -> None:
    drain_s = make_context().spec.memory_tier.scaling.scale_down.drain_timeout_seconds
    assert pod_spec(WANTED, "attention")["terminationGracePeriodSeconds"] > drain_s


def test_a_model_of_a_hub_is_fetched_and_one_of_a_claim_mounted() -> None:
    (fetch,) = pod_spec(WANTED, "stage")["initContainers"]
    assert fetch["command"][:4] == ["glinthawk", "fetch", "--model", "acme/smol"]
    mounted = desired(make_context(model={"source": "pvc://models/smol"}))
    spec = pod_spec(mounted, "stage")
    assert "initContainers" not in spec
    claims = [
        one["persistentVolumeClaim"]
        for one in spec["volumes"]
        if "emptyDir" not in one and "persistentVolumeClaim" in one
    ]
    assert claims == [{"claimName": "models", "readOnly": True}]
    settings = build_settings(make_context(model={"source": "pvc://models/smol"}), "stage")
    assert settings["model"] == "/model/smol"


def test_volumes_are_kept_or_not_as_the_spec_says() -> None:
    kept = WANTED.component("gateway").workload["spec"]["persistentVolumeClaimRetentionPolicy"]
    assert kept == {"whenDeleted": "Retain", "whenScaled": "Retain"}
    wanted = desired(make_context(gateway={"storage": {"whenDeleted": "Delete"}}))
    policy = wanted.component("gateway").workload["spec"]["persistentVolumeClaimRetentionPolicy"]
    assert policy["whenDeleted"] == "Delete"


@pytest.mark.parametrize(
    ("parts", "changed"),
    [
        ({"gpuTier": {"maxRows": 5}}, {"stage"}),
        ({"memoryTier": {"kvCache": {"memory": "2Gi"}}}, {"attention"}),
        ({"gateway": {"seed": 5}}, {"gateway"}),
        ({"gpuTier": {"stages": 3}}, {"gateway", "stage"}),
        ({"logLevel": "debug"}, {"gateway", "stage", "attention"}),
        ({"memoryTier": {"scaling": {"minReplicas": 2, "maxReplicas": 9}}}, set()),
        ({"prices": {"stagePerHour": 1}}, set()),
        ({"networkPolicy": {"enabled": False}}, set()),
    ],
)
def test_a_change_rolls_the_pods_it_concerns_and_no_others(
    parts: dict[str, Any], changed: set[str]
) -> None:
    new = desired(make_context(**parts))
    differs = {
        component
        for component in COMPONENTS
        if new.component(component).template_hash != WANTED.component(component).template_hash
    }
    assert differs == changed


def test_settings_are_those_that_the_services_know() -> None:
    context = make_context(gateway={"tlsSecret": "tls"}, model={"maxSequenceLength": 512})
    for component, kind in (
        ("gateway", GatewayConfig),
        ("attention", AttentionConfig),
        ("stage", StageConfig),
    ):
        settings = build_settings(context, component)
        unknown = set(settings) - set(kind.model_fields)
        assert unknown <= {"device_memory"}, unknown
        more = {"advertise_host": "10.0.0.1"} if component != "gateway" else {}
        settings.pop("device_memory", None)
        kind.model_validate({**settings, **more})
    assert build_settings(context, "attention")["kv_memory"] == GIB


def test_policies_have_only_the_edges_that_there_are() -> None:
    policies = {
        one["metadata"]["name"]: one["spec"]
        for one in WANTED.supporting
        if one["kind"] == "NetworkPolicy"
    }

    def peers(name: str, side: str, key: str) -> set[str]:
        return {
            peer["podSelector"]["matchLabels"]["app.kubernetes.io/component"]
            for rule in policies[name][side]
            for peer in rule.get(key, [])
            if "podSelector" in peer
        }

    assert peers("demo-attention", "ingress", "from") == {"stage"}
    assert peers("demo-attention", "egress", "to") == {"gateway"}
    assert peers("demo-stage", "ingress", "from") == {"gateway", "stage"}
    assert peers("demo-stage", "egress", "to") == {"gateway", "stage", "attention"}
    assert peers("demo-gateway", "egress", "to") == {"stage"}
    assert policies["demo-check"]["ingress"] == policies["demo-check"]["egress"] == []


def test_the_made_key_is_kept_as_its_hash_and_matches_it() -> None:
    import base64
    import hashlib

    cluster, keys = build_secrets(make_context(), lambda count: bytes(range(count)))
    data = {name: base64.b64decode(value) for name, value in keys["data"].items()}
    name, digest = data["keys"].decode().strip().split(":")
    assert name == "default"
    assert hashlib.sha256(data["key"]).hexdigest() == digest
    assert len(base64.b64decode(cluster["data"]["secret"])) == 64
    given = make_context(gateway={"apiKeysSecret": "mine"})
    assert len(build_secrets(given, lambda count: bytes(count))) == 1


names = st.from_regex(r"[a-z0-9]([-a-z0-9.]{0,250}[a-z0-9])?", fullmatch=True)


@given(names, st.sampled_from(["", "gateway", "attention", "check-12345678"]))
def test_names_of_children_are_labels_that_fit(name: str, suffix: str) -> None:
    child = child_name(name, suffix)
    assert len(child) <= MAX_WORKLOAD
    assert child[0].isalpha()
    assert child.endswith(suffix)
    assert not set(child) - set("abcdefghijklmnopqrstuvwxyz0123456789-")
    assert len(instance_label(name)) <= 63


@given(names, names, st.sampled_from(["gateway", "stage", "attention", "secret"]))
def test_two_resources_never_share_a_child(one: str, other: str, suffix: str) -> None:
    if one != other:
        assert child_name(one, suffix) != child_name(other, suffix)
        assert instance_label(one) != instance_label(other)


def test_long_names_give_manifests_that_fit() -> None:
    wanted = desired(make_context("x" * 40))
    for manifest in wanted.supporting:
        assert len(manifest["metadata"]["name"]) <= 63
        for value in manifest["metadata"]["labels"].values():
            assert len(value) <= 63


def test_the_config_map_is_what_the_process_reads() -> None:
    config = WANTED.component("attention").config_map
    assert json.loads(config["data"]["config.yaml"])["kv_memory"] == GIB
