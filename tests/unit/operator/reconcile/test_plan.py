"""The whole plan: nothing at rest, missing Secrets made, stages freed from lost nodes."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from factories_operator import all_objects, all_pods, in_cluster, make_context, make_observed
from glinthawk_operator.manifests.build import desired
from glinthawk_operator.manifests.secrets import build_secrets
from glinthawk_operator.reconcile.actions import Apply, Create, Delete
from glinthawk_operator.reconcile.observed import Observed
from glinthawk_operator.reconcile.plan import Plan, plan

CONTEXT = make_context()
WANTED = desired(CONTEXT)
SECRETS = tuple(build_secrets(CONTEXT, lambda count: b"x" * count))


def whole(**fields: object) -> Observed:
    objects = all_objects(WANTED)
    for secret in SECRETS:
        objects["Secret", secret["metadata"]["name"]] = in_cluster(secret)
    return replace(make_observed(WANTED, objects=objects), **fields)


def run(observed: Observed) -> Plan:
    return plan(WANTED, observed, SECRETS, wanted_workers=1, drain_timeout_s=600.0)


def test_at_rest_nothing_is_done() -> None:
    assert run(whole()).actions == ()


def test_secrets_are_made_where_they_are_missing_and_never_written_over() -> None:
    other = tuple(build_secrets(CONTEXT, lambda count: b"y" * count))
    assert plan(WANTED, whole(), other, wanted_workers=1, drain_timeout_s=1.0).actions == ()
    objects = {key: body for key, body in whole().objects.items() if key[0] != "Secret"}
    made = run(whole(objects=objects)).actions
    assert made == tuple(Create(secret) for secret in SECRETS)


@given(st.data())
def test_whatever_is_missing_or_altered_is_applied_and_nothing_else(data: st.DataObject) -> None:
    observed = whole()
    places = sorted(key for key in observed.objects if key[0] not in ("Secret", "StatefulSet"))
    gone = data.draw(st.sets(st.sampled_from(places)))
    objects = {key: body for key, body in observed.objects.items() if key not in gone}
    actions = run(whole(objects=objects)).actions
    assert all(isinstance(one, Apply) for one in actions)
    applied = {
        (one.manifest["kind"], one.manifest["metadata"]["name"])
        for one in actions
        if isinstance(one, Apply)
    }
    assert applied == gone


def test_what_is_no_longer_wanted_is_deleted() -> None:
    without = desired(make_context(networkPolicy={"enabled": False}))
    made = plan(without, whole(), SECRETS, wanted_workers=1, drain_timeout_s=1.0)
    assert {(one.kind, one.name) for one in made.actions if isinstance(one, Delete)} == {
        ("NetworkPolicy", f"demo-{one}") for one in ("gateway", "stage", "attention", "check")
    }


def test_stages_of_a_lost_node_go_at_once_and_the_gateway_never() -> None:
    pods = tuple(
        replace(pod, node="gpu-1" if pod.name != "demo-stage-1" else "gpu-2")
        for pod in all_pods(WANTED)
    )
    actions = run(whole(pods=pods, lost_nodes=frozenset({"gpu-1"}))).actions
    assert [one for one in actions if isinstance(one, Delete)] == [
        Delete("Pod", "demo-stage-0", "uid-demo-stage-0", 0)
    ]


def cache_on(node: str, is_found_ready_made: bool) -> dict[tuple[str, str], dict[str, Any]]:
    """Return a cache: a volume that was there, or one that was made for a claim."""
    name = "cache-demo-stage-0"
    claim: dict[str, Any] = {
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name},
        "spec": {},
    }
    if not is_found_ready_made:
        claim["metadata"]["annotations"] = {"volume.kubernetes.io/selected-node": node}
        return {("PersistentVolumeClaim", name): in_cluster(claim)}
    expression = {"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}
    affinity = {"required": {"nodeSelectorTerms": [{"matchExpressions": [expression]}]}}
    volume = {
        "kind": "PersistentVolume",
        "metadata": {"name": "local-1"},
        "spec": {"nodeAffinity": affinity},
    }
    claim["spec"] = {"volumeName": "local-1"}
    return {
        ("PersistentVolumeClaim", name): in_cluster(claim),
        ("PersistentVolume", "local-1"): in_cluster(volume),
    }


@pytest.mark.parametrize("is_found_ready_made", [False, True])
def test_a_cache_on_a_lost_node_is_given_up(is_found_ready_made: bool) -> None:
    pods = list(all_pods(WANTED))
    text = "0/3 nodes are available: 3 node(s) didn't match PersistentVolume's node affinity"
    text = text.replace("PersistentVolume's", "volume")
    pods[1] = replace(
        pods[1],
        node=None,
        is_ready=False,
        is_scheduled=False,
        problem=("Unschedulable", text),
    )
    observed = whole(pods=tuple(pods), lost_nodes=frozenset({"gpu-1"}))
    objects = {**observed.objects, **cache_on("gpu-1", is_found_ready_made)}
    deleted = {
        (one.kind, one.name)
        for one in run(replace(observed, objects=objects)).actions
        if isinstance(one, Delete)
    }
    assert deleted == {("PersistentVolumeClaim", "cache-demo-stage-0"), ("Pod", "demo-stage-0")}
    kept = run(replace(observed, objects=objects, lost_nodes=frozenset())).actions
    assert kept == ()
