"""What the chart renders, and how it hangs together. Its values: test_chart_values_contract."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from chart_runs import CHART, HELM, NO_HELM, ROOT, of_kind, render
from glinthawk import __version__
from glinthawk_operator.manifests.names import selector_labels

MONITORING = "monitoring.coreos.com/v1"
LONGEST_RELEASE = 53
LONGEST_NAME = {"Deployment": 63, "Pod": 63, "Service": 63}
"""By kind; of all others 253."""

pytestmark = pytest.mark.skipif(HELM is None, reason=NO_HELM)


def api_versions(*kinds: str) -> list[str]:
    return [word for kind in kinds for word in ("--api-versions", kind)]


def pods_of(objects: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield the spec of each pod that would run."""
    for one in objects:
        if one["kind"] == "Pod":
            yield one["spec"]
        elif "template" in one.get("spec", {}):
            yield one["spec"]["template"]["spec"]


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


def test_the_operator_says_whether_it_lives_and_whether_it_is_ready() -> None:
    (workload,) = of_kind(render(), "Deployment")
    (container,) = workload["spec"]["template"]["spec"]["containers"]
    assert {"startupProbe", "livenessProbe", "readinessProbe"} <= set(container)


def covers(policy: dict[str, Any], labels: dict[str, str]) -> bool:
    selector = policy["spec"]["podSelector"]
    return selector["matchLabels"].items() <= labels.items() and all(
        labels[one["key"]] in one["values"] for one in selector["matchExpressions"]
    )


def test_a_policy_covers_every_pod_of_the_release_and_can_be_left_out() -> None:
    objects = render()
    (policy,) = of_kind(objects, "NetworkPolicy")
    (workload,), (test,) = of_kind(objects, "Deployment"), of_kind(objects, "Pod")
    assert covers(policy, workload["spec"]["template"]["metadata"]["labels"])
    assert covers(policy, test["metadata"]["labels"])
    # The release is called `test`, and so may a resource be.
    assert not covers(policy, selector_labels("test", "gateway"))
    assert not of_kind(render("--set=networkPolicy.enabled=false"), "NetworkPolicy")


def test_no_service_takes_the_pod_of_helm_test_for_an_operator() -> None:
    objects = render()
    (service,), (test,) = of_kind(objects, "Service"), of_kind(objects, "Pod")
    assert not service["spec"]["selector"].items() <= test["metadata"]["labels"].items()


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
    written = {path.name: path.read_text("utf-8") for path in (ROOT / "crds").glob("*.yaml")}
    shown = {path.name: path.read_text("utf-8") for path in (CHART / "crds").glob("*.yaml")}
    assert shown == written, "run `make chart`"
    for text in written.values():
        annotations = yaml.safe_load(text)["metadata"]["annotations"]
        assert annotations["helm.sh/resource-policy"] == "keep"
    assert not of_kind(render(), "CustomResourceDefinition")
    assert len(of_kind(render("--include-crds"), "CustomResourceDefinition")) == len(written)
