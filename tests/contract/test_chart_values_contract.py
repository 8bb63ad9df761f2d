"""The chart's values: their schema, their names, and what they change in what is rendered."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from chart_runs import CHART, HELM, NO_HELM, ROOT, of_kind, render, run_helm
from glinthawk_operator.crd.spec import GlinthawkDeploymentSpec
from glinthawk_operator.settings import Settings, load_settings

pytestmark = pytest.mark.skipif(HELM is None, reason=NO_HELM)

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

UNSAID = {"global", "requests", "limits", "claims"}
"""Values that need not be in values.yaml."""

FREE = ("global", "affinity", "spec")
"""Objects whose fields the chart does not look into."""


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--set=image.pullPolicy=Sometimes"], "pullPolicy"),
        (["--set=operator.replica=2"], "replica"),
        (["--set=monitoring.serviceMonitor=maybe"], "serviceMonitor"),
        (["--set=dashboards.prices.stagePerHour=-1"], "stagePerHour"),
        (["--set=imagee.tag=1"], "imagee"),
        (["--set=operator.config.pollSecond=1"], "pollSecond"),
        (["--set=operator.config.logLevel=loud"], "logLevel"),
        (["--set=operator.config.workers=0"], "workers"),
        (["--set=operator.resources.limit.cpu=1"], "limit"),
        (["--set=operator.resources.limits.cpu=much"], "cpu"),
        (["--set=operator.namespaces={Team}"], "namespaces"),
        (["--set=monitoring.runbooks=here"], "runbooks"),
        (["--set=sample.name=Sample"], "name"),
        (["--set=test.timeoutSeconds=0"], "timeoutSeconds"),
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
        unsaid = set(properties) - set(value)
        assert set(value) <= set(properties), path
        # Settings that the chart does not set have the operator's own defaults.
        assert path == "values.operator.config" or unsaid <= UNSAID, path
        for name, inner in value.items():
            if isinstance(inner, dict):
                check(properties[name], inner, f"{path}.{name}")

    check(schema, values, "values")


def test_every_value_has_a_description_and_a_kind() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))

    def check(described: dict[str, Any], path: str) -> None:
        assert {"type", "enum", "anyOf"} & set(described), path
        if described.get("type") == "object":
            assert "additionalProperties" in described or path.endswith(FREE), path
        for name, inner in described.get("properties", {}).items():
            assert inner["description"].endswith("."), f"{path}.{name}"
            check(inner, f"{path}.{name}")

    check(schema, "values")


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


OF_THE_CHART = {
    *("gateway_image", "stage_image", "attention_image", "namespaces"),
    *("pod_name", "pod_namespace", "host", "health_port", "metrics_port"),
}
"""Settings that other values decide, or the pod."""


def camel(name: str) -> str:
    head, *rest = name.split("_")
    return head + "".join(word.capitalize() for word in rest)


def other_than(default: Any, choices: list[Any] | None) -> Any:
    if choices is not None:
        return next(choice for choice in choices if choice != default)
    return default + 1 if isinstance(default, int | float) else f"{default or 'http://a'}b"


def test_every_setting_is_a_value_with_its_bounds_and_reaches_the_operator() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
    described = schema["properties"]["operator"]["properties"]["config"]["properties"]
    settings = Settings.model_json_schema()["properties"]
    names = set(settings) - OF_THE_CHART
    assert set(described) == {camel(name) for name in names}
    changed: dict[str, Any] = {}
    for name in names:
        shown, known = described[camel(name)], settings[name]
        assert shown["description"].startswith(known["description"]), name
        number = shown["anyOf"][0] if "anyOf" in shown else shown
        for key in ("type", "enum", "minimum", "exclusiveMinimum", "maximum", "minLength"):
            assert number.get(key) == known.get(key), (name, key)
        changed[name] = other_than(getattr(Settings(), name), known.get("enum"))
    arguments = [
        f"--set-json=operator.config.{camel(name)}={json.dumps(value)}"
        for name, value in changed.items()
    ]
    (workload,) = of_kind(render(*arguments), "Deployment")
    container = workload["spec"]["template"]["spec"]["containers"][0]
    environment = {one["name"]: one.get("value", "here") for one in container["env"]}
    for name, value in changed.items():
        assert getattr(load_settings(environment, []), name) == value, name


def test_the_sample_is_a_good_spec_that_needs_no_gpu() -> None:
    assert not of_kind(render(), "GlinthawkDeployment")
    (sample,) = of_kind(render("--set=sample.enabled=true"), "GlinthawkDeployment")
    assert sample["metadata"]["name"] == "sample"
    spec = GlinthawkDeploymentSpec.model_validate(sample["spec"])
    assert spec.gpu_tier.device == "cpu"
    example = yaml.safe_load((ROOT / "examples" / "cpu.yaml").read_text(encoding="utf-8"))
    assert sample["spec"] == example["spec"]


def test_helm_test_asks_the_deployment_that_is_named_or_the_sample() -> None:
    def asked(*arguments: str) -> tuple[str, str, str]:
        (pod,) = of_kind(render(*arguments), "Pod")
        (container,) = pod["spec"]["containers"]
        environment = {one["name"]: one["value"] for one in container["env"]}
        (volume,) = pod["spec"]["volumes"]
        return environment["URL"], volume["secret"]["secretName"], pod["metadata"]["namespace"]

    assert asked() == ("http://sample:8000", "sample-api-key", "systems")
    chosen = ["--set=test.deployment=llama", "--set=test.namespace=team"]
    assert asked(*chosen) == ("http://llama:8000", "llama-api-key", "team")
    given = ["--set=test.url=https://llama.example/", "--set=test.apiKeySecret=mine"]
    assert asked(*chosen, *given) == ("https://llama.example", "mine", "team")


@pytest.mark.parametrize(
    ("arguments", "said", "unsaid"),
    [
        ([], ["all namespaces.", "kubectl apply", "test.deployment=NAME"], ["The sample"]),
        (["--set=operator.namespaces={one,two}"], ["GlinthawkDeployments of one, two."], []),
        (["--set=sample.enabled=true"], ["The sample, sample,"], ["kubectl apply", "CHART"]),
        (["--set=test.deployment=llama"], ["helm test test"], ["CHART"]),
    ],
)
def test_notes_say_what_to_do_next(
    arguments: list[str], said: list[str], unsaid: list[str]
) -> None:
    options = ["--dry-run=client", "--namespace", "systems"]
    done = run_helm("install", "test", str(CHART), *options, *arguments)
    assert done.returncode == 0, done.stderr
    notes = done.stdout.partition("NOTES:")[2]
    assert notes
    assert all(text in notes for text in said), notes
    assert not any(text in notes for text in unsaid), notes
    assert "\n\n\n" not in notes.strip()
    assert all(len(line) < 120 for line in notes.splitlines())


VARIANTS = {
    "defaults": [],
    "everything": [
        *("--set=monitoring.serviceMonitor=on", "--set=monitoring.prometheusRule=on"),
        *("--set=sample.enabled=true", "--set=operator.replicas=2"),
        *("--set=operator.namespaces={one,two}", "--set=image.pullSecrets={pull}"),
        *("--set=operator.config.pollSeconds=2.5", "--set=operator.priorityClassName=high"),
        '--set-json=operator.tolerations=[{"key":"a","operator":"Exists"}]',
    ],
    "as little as there can be": [
        *("--set=rbac.create=false", "--set=serviceAccount.create=false"),
        *("--set=dashboards.enabled=false", "--set=networkPolicy.enabled=false"),
        *("--set=monitoring.serviceMonitor=off", "--set=monitoring.prometheusRule=off"),
        "--set=crds.check=false",
    ],
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_lint_and_rendering_find_nothing_under_other_values(variant: str) -> None:
    done = run_helm("lint", "--strict", str(CHART), *VARIANTS[variant])
    assert done.returncode == 0, done.stdout + done.stderr
    objects = render(*VARIANTS[variant])
    names = [
        (one["kind"], one["metadata"].get("namespace"), one["metadata"]["name"]) for one in objects
    ]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_values_that_the_documentation_sets_exist(page: Path) -> None:
    schema = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
    for path in re.findall(r"--set ([A-Za-z.]+)=", page.read_text(encoding="utf-8")):
        node = schema
        for name in path.split("."):
            free = node.get("additionalProperties")
            node = node.get("properties", {}).get(name) or free
            assert node, f"{page.name} sets {path}"
