"""What the dashboards have in common: variables, selectors, and panels of one look."""

from dataclasses import dataclass, field
from typing import TypeVar

from grafana_foundation_sdk.builders import common as common_builders
from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.builders import prometheus, stat, timeseries
from grafana_foundation_sdk.models import common as common_models
from grafana_foundation_sdk.models import dashboard as models

DATASOURCE = models.DataSourceRef(type_val="prometheus", uid="${datasource}")
TAG = "glinthawk"
WINDOW = "$__rate_interval"
DEPLOYMENT = 'namespace="$namespace", deployment="$deployment"'
"""Labels that monitoring puts on every figure of a process, beside its `role` and `pod`: the
namespace and the name of its GlinthawkDeployment."""

PanelT = TypeVar("PanelT", stat.Panel, timeseries.Panel)


@dataclass(frozen=True)
class Series:
    """One query of a panel and the name of its lines."""

    query: str
    legend: str


@dataclass(frozen=True)
class Plot:
    """A panel. unit: as Grafana names it. is_stat: one figure in place of lines. most: where the
    axis ends. stacked: lines add up. axis: what its numbers count, where the unit does not say."""

    title: str
    about: str
    unit: str
    series: tuple[Series, ...]
    is_stat: bool = False
    width: int = 12
    least: float | None = 0.0
    most: float | None = None
    decimals: int | None = None
    stacked: bool = False
    axis: str = ""
    alarm_above: float | None = None
    alarm_below: float | None = None


@dataclass(frozen=True)
class Row:
    """Panels under one heading."""

    title: str
    plots: tuple[Plot, ...]


@dataclass(frozen=True)
class Board:
    """A dashboard. variables: further ones beside datasource, namespace and deployment."""

    uid: str
    title: str
    about: str
    rows: tuple[Row, ...]
    variables: tuple[builders.TextBoxVariable, ...] = field(default=())
    by_deployment: bool = True


def of_role(role: str, more: str = "") -> str:
    """Return the label matchers of the processes of a role in the chosen deployment."""
    return f'{{{DEPLOYMENT}, role="{role}"{", " if more else ""}{more}}}'


def rate(metric: str, role: str, more: str = "") -> str:
    """Return a counter's rate, a second."""
    return f"rate({metric}{of_role(role, more)}[{WINDOW}])"


def quantile(share: float, metric: str, role: str) -> str:
    """Return a quantile of a histogram over all processes of a role."""
    buckets = rate(f"{metric}_bucket", role)
    return f"histogram_quantile({share}, sum by (le) ({buckets}))"


def mean(metric: str, role: str) -> str:
    """Return a histogram's mean over all processes of a role."""
    return f"sum({rate(f'{metric}_sum', role)}) / sum({rate(f'{metric}_count', role)})"


def build_board(board: Board) -> models.Dashboard:
    """Return a dashboard as Grafana reads it."""
    builder = (
        builders.Dashboard(board.title)
        .uid(board.uid)
        .description(board.about)
        .tags([TAG])
        .timezone("browser")
        .time("now-1h", "now")
        .refresh("30s")
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .link(
            builders.DashboardLink("Glinthawk")
            .type(models.DashboardLinkType.DASHBOARDS)
            .tags([TAG])
            .as_dropdown(False)
            .include_vars(True)
            .keep_time(True)
        )
        .with_variable(
            builders.DatasourceVariable("datasource").label("Data source").type("prometheus")
        )
    )
    for variable in [*_choices(board), *board.variables]:
        builder = builder.with_variable(variable)
    number = 0
    for row in board.rows:
        builder = builder.with_row(builders.Row(row.title).id(number := number + 1))
        for plot in row.plots:
            number += 1
            panel = _build_stat(plot) if plot.is_stat else _build_lines(plot)
            builder = builder.with_panel(panel.id(number))
    return builder.build()


def _choices(board: Board) -> list[builders.QueryVariable]:
    namespace = _choice("namespace", "Namespace", "label_values(glinthawk_ready, namespace)")
    if not board.by_deployment:
        return []
    deployment = 'label_values(glinthawk_ready{namespace="$namespace"}, deployment)'
    return [namespace, _choice("deployment", "Deployment", deployment)]


def _choice(name: str, label: str, query: str) -> builders.QueryVariable:
    return (
        builders.QueryVariable(name)
        .label(label)
        .datasource(DATASOURCE)
        .query(query)
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(models.VariableSort.ALPHABETICAL_ASC)
    )


def price_variable(name: str, label: str, value: str) -> builders.TextBoxVariable:
    """Return a variable for a price, which the chart's values set."""
    return builders.TextBoxVariable(name).label(label).default_value(value)


def _build_stat(plot: Plot) -> stat.Panel:
    panel = (
        stat.Panel()
        .color_mode(common_models.BigValueColorMode.VALUE)
        .graph_mode(common_models.BigValueGraphMode.AREA)
        .reduce_options(common_builders.ReduceDataOptions().calcs(["lastNotNull"]))
    )
    return _finish(panel, plot, height=4)


def _build_lines(plot: Plot) -> timeseries.Panel:
    legend = (
        common_builders.VizLegendOptions()
        .display_mode(common_models.LegendDisplayMode.TABLE)
        .placement(common_models.LegendPlacement.BOTTOM)
        .show_legend(True)
        .calcs(["mean", "lastNotNull"])
    )
    panel = (
        timeseries.Panel()
        .legend(legend)
        .tooltip(
            common_builders.VizTooltipOptions()
            .mode(common_models.TooltipDisplayMode.MULTI)
            .sort(common_models.SortOrder.DESCENDING)
        )
        .fill_opacity(30 if plot.stacked else 8)
        .line_width(1)
        .show_points(common_models.VisibilityMode.NEVER)
    )
    if plot.axis:
        panel = panel.axis_label(plot.axis)
    if plot.stacked:
        stacking = common_builders.StackingConfig().mode(common_models.StackingMode.NORMAL)
        panel = panel.stacking(stacking)
    return _finish(panel, plot, height=8)


def _finish(panel: PanelT, plot: Plot, *, height: int) -> PanelT:
    panel.title(plot.title).description(plot.about).datasource(DATASOURCE).unit(plot.unit)
    panel.height(height).span(plot.width)
    if plot.least is not None:
        panel.min(plot.least)
    if plot.most is not None:
        panel.max(plot.most)
    if plot.decimals is not None:
        panel.decimals(plot.decimals)
    panel.thresholds(_thresholds(plot))
    for position, series in enumerate(plot.series):
        panel.with_target(
            prometheus.Dataquery()
            .datasource(DATASOURCE)
            .expr(series.query)
            .legend_format(series.legend)
            .ref_id(chr(ord("A") + position))
            .range()
        )
    return panel


def _thresholds(plot: Plot) -> builders.ThresholdsConfig:
    steps = [models.Threshold(value=None, color="green")]
    if plot.alarm_above is not None:
        steps.append(models.Threshold(value=plot.alarm_above, color="red"))
    if plot.alarm_below is not None:
        steps[0] = models.Threshold(value=None, color="red")
        steps.append(models.Threshold(value=plot.alarm_below, color="green"))
    return builders.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(steps)
