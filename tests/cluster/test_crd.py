"""The custom resource on a real API server: what it takes, refuses, fills in and prints."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.control_plane import ControlPlane
from cluster.crd_cases import AUTO, CASES, GOOD, MANUAL, Case
from factories_resource import ABSENT, Document, build_resource
from glinthawk_operator.crd.rules import RULES
from glinthawk_operator.crd.schema import build_crd
from glinthawk_operator.crd.spec import GROUP, PLURAL, VERSION, GlinthawkDeploymentSpec

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "glinthawkdeployment.yaml"
NAMESPACE = "glinthawk-test-resource"
KIND_NAME = f"{PLURAL}.{GROUP}"
SCALE = f"/apis/{GROUP}/{VERSION}/namespaces/{NAMESPACE}/{PLURAL}/{{name}}/scale"

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def server(control_plane: ControlPlane) -> Iterator[ControlPlane]:
    """The API server, with the definition and a namespace of our own."""
    was_there = control_plane.kubectl("get", "crd", KIND_NAME).returncode == 0
    control_plane.do("apply", "--server-side", "--force-conflicts", "-f", "-", manifest=build_crd())
    control_plane.do("wait", "--for=condition=Established", "--timeout=120s", f"crd/{KIND_NAME}")
    control_plane.do("create", "namespace", NAMESPACE)
    yield control_plane
    control_plane.do("delete", PLURAL, "--all", "--namespace", NAMESPACE)
    control_plane.do("delete", "namespace", NAMESPACE, "--wait=false")
    if not was_there and not control_plane.is_own:
        control_plane.do("delete", "crd", KIND_NAME)


def build(name: str, changes: Document | None = None) -> Document:
    return build_resource(name, changes, namespace=NAMESPACE)


def scale(server: ControlPlane, name: str, replicas: int) -> Any:
    return server.kubectl("scale", f"ghd/{name}", f"--replicas={replicas}", "-n", NAMESPACE)


def read(server: ControlPlane, name: str) -> Any:
    return server.read(f"ghd/{name}", "--namespace", NAMESPACE)


def attempt(server: ControlPlane, before: Document | None, after: Document, name: str) -> Any:
    """Try to make a resource, or to replace the one of `before` by it; nothing stays."""
    if before is None:
        return server.kubectl("create", "--dry-run=server", "-f", "-", manifest=build(name, after))
    server.do("create", "-f", "-", manifest=build(name, before))
    try:
        return server.kubectl("replace", "--dry-run=server", "-f", "-", manifest=build(name, after))
    finally:
        server.do("delete", "ghd", name, "--namespace", NAMESPACE)


@pytest.mark.parametrize("number", range(len(CASES)), ids=lambda n: f"{CASES[n].words}-{n}")
def test_what_breaks_a_rule_is_refused_with_its_message(server: ControlPlane, number: int) -> None:
    case = CASES[number]
    answer = attempt(server, case.before, case.bad, f"case-{number}")
    assert answer.returncode != 0
    assert (case.said or case.rule.message) in answer.stderr
    if case.rule.field is not None:
        assert f"{case.rule.field}: " in answer.stderr
    assert answer.stderr.count("\n* ") == 0, "one change breaks one rule"


def test_every_rule_has_a_case() -> None:
    def names(case: Case) -> tuple[str, str]:
        return case.part.__name__, case.rule.message

    covered = {names(case) for case in CASES}
    assert covered == {(part.__name__, one.message) for part in RULES for one in RULES[part]}
    assert all(
        case.said is not None for case in CASES if case.rule.said and case.rule.field == "source"
    )


@pytest.mark.parametrize("what", GOOD)
def test_what_keeps_the_rules_is_taken(server: ControlPlane, what: str) -> None:
    before, after = GOOD[what]
    answer = attempt(server, before, after, "good")
    assert answer.returncode == 0, answer.stderr


def test_defaults_of_the_server_are_those_of_the_model(server: ControlPlane) -> None:
    server.do("create", "-f", "-", manifest=build("defaults"))
    stored = read(server, "defaults")["spec"]
    assert stored["gateway"]["service"]["port"] == 8000
    model = GlinthawkDeploymentSpec.model_validate(build("defaults")["spec"])
    assert GlinthawkDeploymentSpec.model_validate(stored) == model


def test_defaults_fill_a_part_that_is_half_said(server: ControlPlane) -> None:
    changes = {"memoryTier.scaling.scaleDown": {"drainTimeoutSeconds": 5}}
    server.do("create", "-f", "-", manifest=build("half", changes))
    scaling = read(server, "half")["spec"]["memoryTier"]["scaling"]
    assert scaling["scaleDown"]["drainTimeoutSeconds"] == 5
    assert scaling["scaleDown"]["stabilizationWindowSeconds"] == 300
    assert scaling["mode"] == "Auto"


def test_unknown_and_wrong_values_are_refused(server: ControlPlane) -> None:
    for changes, words in (
        ({"gpuTier.stage": 2}, 'unknown field "spec.gpuTier.stage"'),
        ({"gpuTier.stages": 0}, "should be greater than or equal to 1"),
        ({"gpuTier.stages": ABSENT}, "Required value"),
        ({"gpuTier.device": "tpu"}, 'supported values: "auto", "cpu", "cuda"'),
        ({"memoryTier.kvCache.memory": "16GiB"}, "should match"),
    ):
        answer = attempt(server, None, changes, "wrong")
        assert answer.returncode != 0
        assert words in answer.stderr


def test_the_example_is_taken(server: ControlPlane) -> None:
    server.do("apply", "--dry-run=server", "-n", NAMESPACE, "-f", str(EXAMPLE))


def test_explain_says_units_and_meanings(server: ControlPlane) -> None:
    text = " ".join(server.do("explain", "ghd.spec.memoryTier.scaling.scaleDown").split())
    assert "drainTimeoutSeconds <integer>" in text
    assert "Seconds that the drain of a worker may take" in text
    text = " ".join(server.do("explain", "ghd.spec.gpuTier.device").split())
    assert "ENUM: auto" in text


@pytest.mark.parametrize("mode", ["Manual", "External"])
def test_scale_reads_and_writes_replicas(server: ControlPlane, mode: str) -> None:
    name = f"scale-{mode.lower()}"
    server.do(
        "create", "-f", "-", manifest=build(name, {**MANUAL, "memoryTier.scaling.mode": mode})
    )
    before = json.loads(server.do("get", "--raw", SCALE.format(name=name)))
    assert before["spec"]["replicas"] == 2
    before["spec"]["replicas"] = 3
    server.do("replace", "--raw", SCALE.format(name=name), "-f", "-", manifest=before)
    assert read(server, name)["spec"]["memoryTier"]["replicas"] == 3
    assert scale(server, name, 1).returncode == 0
    assert read(server, name)["spec"]["memoryTier"]["replicas"] == 1
    answer = scale(server, name, 4)
    assert "replicas is not within scaling.minReplicas and maxReplicas" in answer.stderr


def test_scale_is_refused_in_auto_with_a_message(server: ControlPlane) -> None:
    server.do("create", "-f", "-", manifest=build("scale-auto", AUTO))
    answer = scale(server, "scale-auto", 3)
    assert answer.returncode != 0
    assert "set scaling.mode to Manual or External" in answer.stderr
    server.do("create", "-f", "-", manifest=build("scale-bare"))
    answer = scale(server, "scale-bare", 3)
    assert answer.returncode != 0
    assert "replicas" in answer.stderr


def test_modes_change_by_apply_and_back_after_scale_wrote(server: ControlPlane) -> None:
    def apply(changes: Document) -> None:
        server.do("apply", "-f", "-", manifest=build("switch", changes))

    auto = {**AUTO, "memoryTier.replicas": ABSENT}
    external = {**MANUAL, "memoryTier.scaling.mode": "External"}
    apply(auto)
    apply(external)
    assert scale(server, "switch", 3).returncode == 0
    apply(auto)
    tier = read(server, "switch")["spec"]["memoryTier"]
    assert tier["scaling"]["mode"] == "Auto"
    apply(external)
    assert read(server, "switch")["spec"]["memoryTier"]["replicas"] == 2


def test_status_is_written_apart_and_printed(server: ControlPlane) -> None:
    server.do("create", "-f", "-", manifest=build("status", MANUAL))
    condition = {
        "type": "Ready",
        "status": "True",
        "reason": "TokensFlow",
        "message": "",
        "lastTransitionTime": "2026-01-02T03:04:05Z",
    }
    status = {
        "conditions": [condition],
        "summary": {"stages": "2/2", "workers": "1/2", "kvUsed": "41%"},
        "throughput": {"tokensPerSecond": 123.5},
        "memoryTier": {"replicas": 2, "selector": "a=b"},
    }
    patch = json.dumps({"status": status, "spec": {"gpuTier": {"stages": 9}}})
    where = ("status", "--namespace", NAMESPACE, "--type=merge", "--patch")
    server.do("patch", "ghd", *where, patch, "--subresource=status")
    stored = read(server, "status")
    assert stored["spec"]["gpuTier"]["stages"] == 2
    assert stored["status"] == status
    seen = json.loads(server.do("get", "--raw", SCALE.format(name="status")))
    assert seen["status"] == {"replicas": 2, "selector": "a=b"}
    head, line = server.do("get", "ghd", "status", "-n", NAMESPACE).splitlines()
    assert head.split() == ["NAME", "READY", "STAGES", "WORKERS", "KV", "USED", "TOK/S", "AGE"]
    assert line.split()[:6] == ["status", "True", "2/2", "1/2", "41%", "123.5"]
    bad = json.dumps({"status": {"conditions": [{**condition, "reason": "not ready"}]}})
    refused = server.kubectl("patch", "ghd", *where, bad, "--subresource=status")
    assert "status.conditions[0].reason" in refused.stderr
