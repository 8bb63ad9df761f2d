"""Throughput: tokens, what they cost, and when batches are over."""

from dashboards.parts import Board, Plot, Row, Series, of_role, price_variable, rate

TOKENS_OUT = f"sum({rate('glinthawk_tokens_out_total', 'gateway')})"
TOKENS_IN = f"sum({rate('glinthawk_tokens_in_total', 'gateway')})"


def _count(role: str) -> str:
    """Return how many processes of a role report, 0 if none does."""
    return f"(count(glinthawk_kv_used_bytes{of_role(role)}) or vector(0))"


COST_PER_HOUR = (
    f"({_count('stage')} * $stage_price + {_count('attention')} * $worker_price"
    f" + {_count('gateway')} * $gateway_price)"
)


def _cost_of(tokens: str) -> str:
    return f"{COST_PER_HOUR} / (({tokens}) * 3600) * 1e6"


SUMMARY = Row(
    "Now",
    (
        Plot(
            "Ready",
            "1 while the gateway can have a token generated: all stages and a worker are there.",
            "bool_yes_no",
            (Series(f"max(glinthawk_ready{of_role('gateway')})", "ready"),),
            is_stat=True,
            width=4,
            alarm_below=1,
        ),
        Plot(
            "Output",
            "Tokens generated a second.",
            "short",
            (Series(TOKENS_OUT, "tokens/s"),),
            is_stat=True,
            width=4,
        ),
        Plot(
            "Input",
            "Prompt tokens prefilled a second.",
            "short",
            (Series(TOKENS_IN, "tokens/s"),),
            is_stat=True,
            width=4,
        ),
        Plot(
            "Cost of a million output tokens",
            "Prices an hour of all processes, divided by what is generated in an hour.",
            "currencyUSD",
            (Series(_cost_of(TOKENS_OUT), "per million"),),
            is_stat=True,
            width=4,
            decimals=2,
        ),
        Plot(
            "Open lines",
            "Lines of running batches without an answer.",
            "short",
            (Series(f"sum(glinthawk_job_open_lines{of_role('gateway')}) or vector(0)", "lines"),),
            is_stat=True,
            width=4,
        ),
        Plot(
            "All batches over in",
            "The longest of the running batches' estimates.",
            "s",
            (Series(f"max(glinthawk_job_eta_seconds{of_role('gateway')}) or vector(0)", "ETA"),),
            is_stat=True,
            width=4,
        ),
    ),
)

TOKENS = Row(
    "Tokens",
    (
        Plot(
            "Tokens a second",
            "Prompt tokens prefilled and tokens generated.",
            "short",
            (Series(TOKENS_OUT, "out"), Series(TOKENS_IN, "in")),
            axis="tokens/s",
        ),
        Plot(
            "Tokens a second by batch",
            "In and out, of each running batch.",
            "short",
            (
                Series(
                    f"sum by (batch) (glinthawk_job_tokens_per_second{of_role('gateway')})",
                    "{{batch}}",
                ),
            ),
            stacked=True,
            axis="tokens/s",
        ),
        Plot(
            "Cost of a million tokens",
            "From the prices above, an hour of a stage, a worker and the gateway.",
            "currencyUSD",
            (
                Series(_cost_of(TOKENS_OUT), "output"),
                Series(_cost_of(f"{TOKENS_OUT} + {TOKENS_IN}"), "input and output"),
            ),
            axis="for a million",
        ),
        Plot(
            "Cost an hour",
            "Of the processes that report.",
            "currencyUSD",
            (
                Series(f"{_count('stage')} * $stage_price", "stages"),
                Series(f"{_count('attention')} * $worker_price", "attention workers"),
                Series(f"{_count('gateway')} * $gateway_price", "gateway"),
            ),
            stacked=True,
            axis="for an hour",
        ),
    ),
)

WORK = Row(
    "Batches and requests",
    (
        Plot(
            "Lines answered a second",
            "Answers of batches that are durable, by outcome.",
            "short",
            (
                Series(
                    f"sum by (outcome) ({rate('glinthawk_job_lines_total', 'gateway')})",
                    "{{outcome}}",
                ),
            ),
            axis="lines/s",
        ),
        Plot(
            "Time left by batch",
            "Estimates from each batch's own rate; absent while a batch has none.",
            "s",
            (
                Series(
                    f"max by (batch) (glinthawk_job_eta_seconds{of_role('gateway')})", "{{batch}}"
                ),
            ),
        ),
        Plot(
            "Batches",
            "Those that are not over, by status.",
            "short",
            (Series(f"sum by (status) (glinthawk_jobs{of_role('gateway')})", "{{status}}"),),
            stacked=True,
            axis="batches",
        ),
        Plot(
            "Requests a second, and sequences that wait",
            "Waiting with KV free: the stages are the limit. Waiting without: the memory tier is.",
            "short",
            (
                Series(f"sum({rate('glinthawk_requests_total', 'gateway')})", "requests/s"),
                Series(
                    f"sum by (class) (glinthawk_waiting_sequences{of_role('gateway')})",
                    "waiting, {{class}}",
                ),
            ),
        ),
    ),
)

CALLS = "glinthawk_http_requests_total"
ERRORS = 'status=~"4..|5.."'


def _latency(share: float) -> str:
    """Return a quantile of the time of calls, by route."""
    buckets = rate("glinthawk_http_request_seconds_bucket", "gateway")
    return f"histogram_quantile({share}, sum by (le, method, route) ({buckets}))"


HTTP = Row(
    "HTTP calls by route",
    (
        Plot(
            "Calls a second",
            "Calls that are over, by route; one that streams is over with its last byte.",
            "short",
            (Series(f"sum by (method, route) ({rate(CALLS, 'gateway')})", "{{method}} {{route}}"),),
            axis="calls/s",
        ),
        Plot(
            "Errors a second",
            "Calls that ended with a status of 400 or above; 499: the caller hung up.",
            "short",
            (
                Series(
                    f"sum by (status, method, route) ({rate(CALLS, 'gateway', ERRORS)})",
                    "{{status}} {{method}} {{route}}",
                ),
            ),
            axis="calls/s",
        ),
        Plot(
            "Time of a call, 95%",
            "From its arrival to the last byte of its answer: that of a generation is all of it.",
            "s",
            (Series(_latency(0.95), "{{method}} {{route}}"),),
        ),
        Plot(
            "Time of a call, median",
            "The same; half of the calls take less.",
            "s",
            (Series(_latency(0.5), "{{method}} {{route}}"),),
        ),
        Plot(
            "Open calls",
            "Calls that are under way.",
            "short",
            (Series(f"sum(glinthawk_http_open_requests{of_role('gateway')})", "open"),),
            axis="calls",
        ),
    ),
)

THROUGHPUT = Board(
    uid="glinthawk-throughput",
    title="Glinthawk / Throughput",
    about="Tokens a second, what a million of them costs, and when batches are over.",
    rows=(SUMMARY, TOKENS, WORK, HTTP),
    variables=(
        price_variable("stage_price", "Price of a stage, an hour", "0.35"),
        price_variable("worker_price", "Price of a worker, an hour", "0.20"),
        price_variable("gateway_price", "Price of the gateway, an hour", "0.05"),
    ),
)
