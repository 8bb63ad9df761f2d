"""The chart: what it renders, under which values, and what it has in common with the code.

Needs helm on the PATH, or beside the other binaries in KUBEBUILDER_ASSETS; without it, it skips.
"""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from glinthawk import __version__
from glinthawk_operator.settings import Settings, load_settings

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "charts" / "glinthawk"
MONITORING = "monitoring.coreos.com/v1"
LONGEST_RELEASE = 53
LONGEST_NAME = {"Deployment": 63, "Pod": 63, "Service": 63}
"""By kind; of all others 253."""


def find_helm() -> str | None:
    assets = os.environ.get("KUBEBUILDER_ASSETS", "")
    return shutil.which("helm") or shutil.which("helm", path=assets)


HELM = find_helm()
pytestmark = pytest.mark.skipif(HELM is None, reason="helm is neither on the PATH nor in assets")


def run_helm(*arguments: str) -> subprocess.CompletedProcess[str]:
    assert HELM is not None
    return subprocess.run([HELM, *arguments], capture_output=True, text=True, timeout=120)


def render(*arguments: str, release: str = "test") -> list[dict[str, Any]]:
    done = run_helm("template", release, str(CHART), "--namespace", "systems", *arguments)
    assert done.returncode == 0, done.stderr
    return [document for document in yaml.safe_load_all(done.stdout) if document]


def of_kind(objects: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [one for one in objects if one["kind"] == kind]


def api_versions(*kinds: str) -> list[str]:
    return [word for kind in kinds for word in ("--api-versions", kind)]


def pods_of(objects: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield the spec of each pod that would run."""
    for one in objects:
        if one["kind"] == "Pod":
            yield one["spec"]
        elif "template" in one.get("spec", {}):
            yield one["spec"]["template"]["spec"]


def test_lint_finds_nothing() -> None:
    done = run_helm("lint", "--strict", str(CHART))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[WARNING]" not in done.stdout


def test_versions_are_those_of_the_package() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))
    assert (chart["version"], chart["appVersion"]) == (__version__, __version__)


def test_every_object_is_labelled_and_placed() -> None:
    objects = render()
    assert {"Deployment", "ServiceAccount", "Service", "ConfigMap"} <= {o["kind"] for o in objects}
    for one in objects:
        labels = one["metadata"].get("labels", {})
        assert labels.get("app.kubernetes.io/instance") == "test", one["kind"]
        is_of_cluster = one["kind"].startswith(("Cluster", "CustomResource"))
        assert (one["metadata"].get("namespace") == "systems") != is_of_cluster, one["kind"]


@pytest.mark.parametrize(
    ("value", "known", "made"),
    [
        ("auto", False, False),
        ("auto", True, True),
        ("on", False, True),
        ("true", False, True),
        ("off", True, False),
        ("false", True, False),
    ],
)
def test_monitoring_is_off_on_or_made_where_its_kinds_are_known(
    value: str, known: bool, made: bool
) -> None:
    kinds = ("ServiceMonitor", "PrometheusRule")
    settings = [f"--set=monitoring.{kind[0].lower()}{kind[1:]}={value}" for kind in kinds]
    versions = api_versions(*(f"{MONITORING}/{kind}" for kind in kinds)) if known else []
    objects = render(*settings, *versions)
    for kind in kinds:
        assert bool(of_kind(objects, kind)) == made, kind


def test_a_service_monitor_finds_the_operators_service_and_port() -> None:
    objects = render("--set=monitoring.serviceMonitor=on")
    (monitor,), (service,) = of_kind(objects, "ServiceMonitor"), of_kind(objects, "Service")
    wanted = monitor["spec"]["selector"]["matchLabels"]
    assert wanted.items() <= service["metadata"]["labels"].items()
    ports = {port["name"] for port in service["spec"]["ports"]}
    assert {endpoint["port"] for endpoint in monitor["spec"]["endpoints"]} <= ports


def test_services_and_workloads_select_the_operators_pods() -> None:
    objects = render()
    (workload,), (service,) = of_kind(objects, "Deployment"), of_kind(objects, "Service")
    labels = workload["spec"]["template"]["metadata"]["labels"]
    assert workload["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert service["spec"]["selector"].items() <= labels.items()
    container = workload["spec"]["template"]["spec"]["containers"][0]
    ports = {port["name"] for port in container["ports"]}
    assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports


def test_alerts_come_with_links_where_runbooks_can_be_read() -> None:
    address = "https://example.org/docs/runbooks"
    objects = render("--set=monitoring.prometheusRule=on", f"--set=monitoring.runbooks={address}")
    (rule,) = of_kind(objects, "PrometheusRule")
    source = yaml.safe_load((CHART / "rules" / "alerts.yaml").read_text(encoding="utf-8"))
    shown = [one for group in rule["spec"]["groups"] for one in group["rules"]]
    written = [one for group in source["groups"] for one in group["rules"]]
    assert [one["alert"] for one in shown] == [one["alert"] for one in written]
    for one in shown:
        assert one["annotations"]["runbook_url"] == f"{address}#{one['alert'].lower()}"


def test_every_alert_has_a_runbook_a_severity_and_patience() -> None:
    page = (ROOT / "docs" / "runbooks.md").read_text(encoding="utf-8")
    headings = set(re.findall(r"^## (\S+)$", page, re.MULTILINE))
    source = yaml.safe_load((CHART / "rules" / "alerts.yaml").read_text(encoding="utf-8"))
    rules = [one for group in source["groups"] for one in group["rules"]]
    assert headings == {one["alert"] for one in rules}
    for one in rules:
        assert one["labels"]["severity"] in ("warning", "critical"), one["alert"]
        assert one["for"], one["alert"]
        assert {"summary", "description"} <= set(one["annotations"]), one["alert"]


def test_prices_of_the_values_reach_the_dashboard() -> None:
    objects = render("--set=dashboards.prices.stagePerHour=1.25")
    boards = {}
    for one in of_kind(objects, "ConfigMap"):
        assert one["metadata"]["labels"]["grafana_dashboard"] == "1"
        for content in one["data"].values():
            board = json.loads(content)
            boards[board["uid"]] = board
    variables = {one["name"]: one for one in boards["glinthawk-throughput"]["templating"]["list"]}
    assert variables["stage_price"]["query"] == "1.25"
    assert variables["worker_price"]["query"] == "0.2"
    assert len(boards) == len(list((CHART / "dashboards").glob("*.json")))


def test_pods_are_restricted() -> None:
    pods = list(pods_of(render()))
    assert len(pods) == 2
    for pod in pods:
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["enableServiceLinks"] is False
        for container in pod["containers"]:
            context = container["securityContext"]
            assert context["readOnlyRootFilesystem"] is True
            assert context["allowPrivilegeEscalation"] is False
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert {"requests", "limits"} <= set(container["resources"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--set=image.pullPolicy=Sometimes"], "pullPolicy"),
        (["--set=operator.replica=2"], "replica"),
        (["--set=monitoring.serviceMonitor=maybe"], "serviceMonitor"),
        (["--set=dashboards.prices.stagePerHour=-1"], "stagePerHour"),
        (["--set=imagee.tag=1"], "imagee"),
    ],
)
def test_a_value_that_does_not_exist_or_fit_is_refused_by_name(
    arguments: list[str], said: str
) -> None:
    done = run_helm("template", "test", str(CHART), *arguments)
    assert done.returncode != 0
    assert said in done.stderr


def test_the_schema_describes_every_value() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
    values = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))

    def check(described: dict[str, Any], value: dict[str, Any], path: str) -> None:
        properties = described.get("properties")
        if properties is None:
            return
        assert set(properties) - {"global"} == set(value), path
        for name, inner in value.items():
            if isinstance(inner, dict):
                check(properties[name], inner, f"{path}.{name}")

    check(schema, values, "values")


def test_images_have_registry_and_tag_of_the_values() -> None:
    arguments = ["--set=image.registry=registry.example/team/", "--set=image.tag=v7"]
    (workload,) = of_kind(render(*arguments), "Deployment")
    container = workload["spec"]["template"]["spec"]["containers"][0]
    assert container["image"] == "registry.example/team/glinthawk-operator:v7"
    environment = {one["name"]: one.get("value") for one in container["env"]}
    for component in ("gateway", "stage", "attention"):
        image = environment[f"GLINTHAWK_OPERATOR_{component.upper()}_IMAGE"]
        assert image == f"registry.example/team/glinthawk-{component}:v7"


def test_the_operators_environment_and_values_have_the_names_of_its_settings() -> None:
    (workload,) = of_kind(render(), "Deployment")
    container = workload["spec"]["template"]["spec"]["containers"][0]
    names = {one["name"] for one in container["env"]}
    known = {f"GLINTHAWK_OPERATOR_{name.upper()}" for name in Settings.model_fields}
    assert names <= known
    environment = {one["name"]: one.get("value", "here") for one in container["env"]}
    settings = load_settings(environment, [])
    assert settings.namespaces == ()
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"health": settings.health_port, "metrics": settings.metrics_port}


def test_namespaces_get_roles_of_their_own_in_place_of_one_for_all() -> None:
    everywhere = render()
    assert len(of_kind(everywhere, "ClusterRole")) == 2
    chosen = render("--set=operator.namespaces={one,two}")
    assert len(of_kind(chosen, "ClusterRole")) == 1
    roles = {one["metadata"]["namespace"]: one["rules"] for one in of_kind(chosen, "Role")}
    assert set(roles) == {"systems", "one", "two"}
    (general,) = (
        one
        for one in of_kind(everywhere, "ClusterRole")
        if one["metadata"]["name"].endswith("-resources")
    )
    assert roles["one"] == roles["two"] == general["rules"]


def test_names_fit_whatever_the_release_is_called() -> None:
    release = "r" * LONGEST_RELEASE
    for one in render("--set=monitoring.serviceMonitor=on", release=release):
        longest = LONGEST_NAME.get(one["kind"], 253)
        assert len(one["metadata"]["name"]) <= longest, one["metadata"]["name"]


def test_definitions_are_those_of_the_repository_and_are_kept() -> None:
    shown = {one["metadata"]["name"]: one for one in of_kind(render(), "CustomResourceDefinition")}
    written = [
        yaml.safe_load(path.read_text(encoding="utf-8"))
        for path in sorted((ROOT / "crds").glob("*.yaml"))
    ]
    assert set(shown) == {one["metadata"]["name"] for one in written}
    for one in written:
        rendered = shown[one["metadata"]["name"]]
        assert rendered["spec"] == one["spec"], "run `make chart`"
        assert rendered["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    assert not of_kind(render("--set=crds.install=false"), "CustomResourceDefinition")


def test_the_sample_waits_for_its_kind() -> None:
    spec = "--set-json=sample.spec={}"
    asked = ["--set=sample.enabled=true", spec]
    assert not of_kind(render(*asked), "GlinthawkDeployment")
    known = api_versions("glinthawk.dev/v1alpha1/GlinthawkDeployment")
    (sample,) = of_kind(render(*asked, *known), "GlinthawkDeployment")
    assert sample["metadata"]["name"] == "sample"
