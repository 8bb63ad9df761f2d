"""The dashboards in the chart are those of the code, and speak only of figures that exist."""

import json
import re
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry
from prometheus_client.metrics import MetricWrapperBase

from dashboards.__main__ import BOARDS, FOLDER, render
from dashboards.parts import DEPLOYMENT
from glinthawk.gateway.http.metrics import HttpMetrics
from glinthawk.gateway.jobs.metrics import JobMetrics
from glinthawk.telemetry.metrics import ServiceMetrics
from glinthawk_operator.metrics import OperatorMetrics
from prometheus_runs import member_labels

NAME = re.compile(r"glinthawk_[a-z_]+")
RULES = FOLDER.parent / "rules" / "alerts.yaml"


def shown_names() -> set[str]:
    """Return every name of a series that the services show."""
    metrics = [
        *vars(ServiceMetrics(CollectorRegistry())).values(),
        *vars(JobMetrics(CollectorRegistry())).values(),
        *vars(HttpMetrics(CollectorRegistry())).values(),
        *vars(OperatorMetrics(CollectorRegistry())).values(),
    ]
    names: set[str] = set()
    for metric in metrics:
        if isinstance(metric, MetricWrapperBase):
            (family,) = metric.collect()
            suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}
            names |= {family.name + suffix for suffix in suffixes.get(family.type, ("",))}
    return names


def panels_of(board: str) -> list[dict[str, Any]]:
    content = json.loads((FOLDER / f"{board}.json").read_text(encoding="utf-8"))
    return [panel for panel in content["panels"] if panel["type"] != "row"]


@pytest.mark.parametrize("board", BOARDS)
def test_the_charts_json_is_that_of_the_code(board: str) -> None:
    shown = (FOLDER / f"{board}.json").read_text(encoding="utf-8")
    assert shown == render(BOARDS[board]), "run `make chart`"


def test_no_dashboard_is_left_that_the_code_does_not_have() -> None:
    assert {path.stem for path in FOLDER.glob("*.json")} == set(BOARDS)


@pytest.mark.parametrize("board", BOARDS)
def test_panels_ask_only_for_figures_that_exist(board: str) -> None:
    known = shown_names()
    for panel in panels_of(board):
        for target in panel["targets"]:
            asked = set(NAME.findall(target["expr"]))
            assert asked, panel["title"]
            assert asked <= known, panel["title"]


def test_alerts_ask_only_for_figures_that_exist() -> None:
    known = shown_names()
    content = yaml.safe_load(RULES.read_text(encoding="utf-8"))
    for group in content["groups"]:
        for rule in group["rules"]:
            assert set(NAME.findall(rule["expr"])) <= known, rule["alert"]


@pytest.mark.parametrize("board", BOARDS)
def test_every_panel_has_what_users_expect(board: str) -> None:
    panels = panels_of(board)
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        title = panel["title"]
        assert panel["description"].endswith("."), title
        assert panel["fieldConfig"]["defaults"]["unit"], title
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}, title
        legends = [target["legendFormat"] for target in panel["targets"]]
        assert all(legends), title
        assert len(set(legends)) == len(legends), title
        references = [target["refId"] for target in panel["targets"]]
        assert len(set(references)) == len(references), title


@pytest.mark.parametrize("board", BOARDS)
def test_panels_do_not_overlap(board: str) -> None:
    taken: set[tuple[int, int]] = set()
    content = json.loads((FOLDER / f"{board}.json").read_text(encoding="utf-8"))
    for panel in content["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24, panel["title"]
        taken |= cells


@pytest.mark.parametrize("board", BOARDS)
def test_dashboards_lead_to_each_other_and_keep_what_was_chosen(board: str) -> None:
    content = json.loads((FOLDER / f"{board}.json").read_text(encoding="utf-8"))
    (link,) = content["links"]
    assert link["tags"] == content["tags"] == ["glinthawk"]
    assert link["includeVars"] is True
    assert link["keepTime"] is True
    names = {variable["name"] for variable in content["templating"]["list"]}
    used = set(re.findall(r"\$([a-z][a-z_]*)", json.dumps(content["panels"])))
    assert used <= names


def test_the_documented_scraping_puts_the_labels_that_dashboards_and_alerts_ask_for() -> None:
    page = (FOLDER.parents[2] / "docs" / "install.md").read_text(encoding="utf-8")
    found = re.search(r"```yaml\n(scrape_configs:.*?)```", page, re.DOTALL)
    assert found
    members, operator = yaml.safe_load(found[1])["scrape_configs"]
    labels = {one["target_label"] for one in members["relabel_configs"] if "target_label" in one}
    asked = set(re.findall(r"(\w+)=~?\"", DEPLOYMENT + RULES.read_text(encoding="utf-8")))
    assert asked - {"outcome"} <= labels
    assert labels == set(member_labels("worker-0"))
    assert operator["honor_labels"] is True
