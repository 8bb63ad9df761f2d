"""The operator: resources and their state, workers wanted and had, reconciles and API requests."""

from dashboards.parts import WINDOW, Board, Plot, Row, Series

PREFIX = "glinthawk_operator"


def _rate(metric: str) -> str:
    return f"rate({PREFIX}_{metric}[{WINDOW}])"


def _by_resource(metric: str, *, where: str = "") -> str:
    return f"max by (namespace, deployment) ({PREFIX}_{metric}{where})"


def _stat(title: str, about: str, query: str, **more: float) -> Plot:
    series = (Series(query, title),)
    return Plot(title, about, "short", series, is_stat=True, width=4, **more)  # type: ignore[arg-type]


def _lines(
    title: str, about: str, unit: str, *series: Series, stacked: bool = False, axis: str = ""
) -> Plot:
    return Plot(title, about, unit, series, stacked=stacked, axis=axis)


NAMED = "{{namespace}}/{{deployment}}"

SUMMARY = Row(
    "Now",
    (
        _stat("Resources", "GlinthawkDeployments there are.", f"max({PREFIX}_resources)"),
        _stat("Ready", "Those that can generate.", f"sum({_by_resource('ready')})"),
        _stat(
            "Degraded",
            "Those of which a wanted pod is missing, or that cannot work as they are written.",
            f"sum({_by_resource('degraded')})",
            alarm_above=1,
        ),
        _stat(
            "Scaling frozen",
            "Those whose figures are missing or stale, so that their workers stay as they are.",
            f"sum({_by_resource('scaling_frozen')})",
            alarm_above=1,
        ),
        _stat(
            "Acting operators",
            "Operators that hold the lease: one, for a moment none.",
            f"sum({PREFIX}_leader)",
            alarm_below=1,
        ),
        _stat("Due", "Resources whose reconcile is due.", f"sum({PREFIX}_queue_depth)"),
    ),
)

SCALING = Row(
    "Memory tiers",
    (
        _lines(
            "Workers wanted",
            "What scaling decided, within the bounds of each resource.",
            "short",
            Series(_by_resource("wanted_workers"), NAMED),
            axis="workers",
        ),
        _lines(
            "Workers had",
            "Workers that are ready.",
            "short",
            Series(_by_resource("ready_workers"), NAMED),
            axis="workers",
        ),
        _lines(
            "Workers that the formula asks for",
            "From KV demand and busy time alone, before bounds, windows and steps.",
            "short",
            Series(_by_resource("needed_workers"), NAMED),
            axis="workers",
        ),
        _lines(
            "Workers on their way out",
            "Drained, so that nothing is lost with them.",
            "short",
            Series(_by_resource("draining_workers"), NAMED),
            axis="workers",
        ),
        _lines(
            "KV demanded at the last decision",
            "Bytes that sequences wanted when the number of workers was last decided.",
            "bytes",
            Series(_by_resource("kv_demanded_bytes"), NAMED),
        ),
        _lines(
            "Decisions a second",
            "Those that changed a number of workers, by reason.",
            "short",
            Series(
                f"sum by (namespace, deployment, reason) ({_rate('decisions_total')})",
                f"{NAMED} {{{{reason}}}}",
            ),
            axis="decisions/s",
        ),
    ),
)

WORK = Row(
    "The operator's work",
    (
        _lines(
            "Reconciles a second",
            "By result.",
            "short",
            Series(f"sum by (result) ({_rate('reconciles_total')})", "{{result}}"),
            axis="reconciles/s",
        ),
        _lines(
            "Time of a reconcile",
            "From taking a resource up to its status.",
            "s",
            Series(
                f"histogram_quantile(0.5, sum by (le) ({_rate('reconcile_seconds_bucket')}))",
                "median",
            ),
            Series(
                f"histogram_quantile(0.95, sum by (le) ({_rate('reconcile_seconds_bucket')}))",
                "95%",
            ),
        ),
        _lines(
            "Requests of the API server a second",
            "By verb and kind; at rest there are next to none.",
            "short",
            Series(f"sum by (verb, kind) ({_rate('api_requests_total')})", "{{verb}} {{kind}}"),
            stacked=True,
            axis="requests/s",
        ),
        _lines(
            "Actions a second",
            "What was done to the cluster and to gateways.",
            "short",
            Series(f"sum by (action) ({_rate('actions_total')})", "{{action}}"),
            stacked=True,
            axis="actions/s",
        ),
        _lines(
            "Errors a second",
            "By kind.",
            "short",
            Series(f"sum by (kind) ({_rate('errors_total')})", "{{kind}}"),
            axis="errors/s",
        ),
    ),
)

OPERATOR = Board(
    uid="glinthawk-operator",
    title="Glinthawk / Operator",
    about="Resources and their state, workers wanted and had, reconciles and API requests.",
    rows=(SUMMARY, SCALING, WORK),
    by_deployment=False,
)
