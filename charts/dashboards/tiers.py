"""The tiers: KV memory against demand, how busy stages and workers are, and where time goes."""

from dashboards.parts import Board, Plot, Row, Series, mean, of_role, quantile, rate

GATEWAY, STAGE, WORKER = of_role("gateway"), of_role("stage"), of_role("attention")
STAGE_BUSY = rate("glinthawk_stage_busy_seconds_total", "stage")
WORKER_BUSY = rate("glinthawk_attention_busy_seconds_total", "attention")


def _stat(title: str, about: str, unit: str, query: str, **more: float) -> Plot:
    return Plot(title, about, unit, (Series(query, title),), is_stat=True, width=4, **more)  # type: ignore[arg-type]


def _times(title: str, about: str, metric: str, role: str) -> Plot:
    series = (
        Series(quantile(0.5, metric, role), "median"),
        Series(quantile(0.95, metric, role), "95%"),
        Series(mean(metric, role), "mean"),
    )
    return Plot(title, about, "s", series, width=8)


SUMMARY = Row(
    "Now",
    (
        _stat("Stages", "Stages that report.", "short", f"count(glinthawk_ready{STAGE})"),
        _stat(
            "Attention workers", "Workers that report.", "short", f"count(glinthawk_ready{WORKER})"
        ),
        _stat(
            "KV used",
            "Share of the memory tier that sequences hold.",
            "percentunit",
            f"sum(glinthawk_kv_used_bytes{GATEWAY}) / sum(glinthawk_kv_capacity_bytes{GATEWAY})",
            most=1,
            alarm_above=0.95,
        ),
        _stat(
            "KV demanded",
            "Share of the memory tier that is wanted; above 1, sequences wait for memory.",
            "percentunit",
            f"sum(glinthawk_kv_demanded_bytes{GATEWAY})"
            f" / sum(glinthawk_kv_capacity_bytes{GATEWAY})",
            alarm_above=1,
        ),
        _stat(
            "Stages idle",
            "Share of time in which stages had nothing to compute: they wait for workers.",
            "percentunit",
            f"1 - avg({STAGE_BUSY})",
            most=1,
        ),
        _stat(
            "Rows of a step",
            "Sequences that a lane's step took along, on average.",
            "short",
            mean("glinthawk_lane_rows", "gateway"),
        ),
    ),
)

MEMORY = Row(
    "KV memory",
    (
        Plot(
            "KV used, demanded, capacity",
            "Demand is what running sequences and those that may start want; it scales the tier.",
            "bytes",
            (
                Series(f"sum(glinthawk_kv_used_bytes{GATEWAY})", "used"),
                Series(f"sum(glinthawk_kv_demanded_bytes{GATEWAY})", "demanded"),
                Series(f"sum(glinthawk_kv_capacity_bytes{GATEWAY})", "capacity"),
            ),
        ),
        Plot(
            "KV used by worker",
            "Bytes that each worker holds.",
            "bytes",
            (Series(f"sum by (pod) (glinthawk_kv_used_bytes{WORKER})", "{{pod}}"),),
            stacked=True,
        ),
        Plot(
            "KV capacity by worker",
            "Bytes that each worker has; none before the model's shape is known.",
            "bytes",
            (Series(f"sum by (pod) (glinthawk_kv_capacity_bytes{WORKER})", "{{pod}}"),),
            stacked=True,
        ),
        Plot(
            "Tokens recomputed a second",
            "Prefilled again: KV was given up for want of room, or lost with a process.",
            "short",
            (
                Series(f"sum({rate('glinthawk_recomputed_tokens_total', 'gateway')})", "again"),
                Series(f"sum({rate('glinthawk_tokens_out_total', 'gateway')})", "generated"),
            ),
            axis="tokens/s",
        ),
        Plot(
            "Processes",
            "Stages and workers that report. The operator's dashboard has the workers wanted.",
            "short",
            (
                Series(f"count(glinthawk_ready{WORKER})", "attention workers"),
                Series(f"count(glinthawk_ready{STAGE})", "stages"),
            ),
            axis="processes",
        ),
    ),
)

BUSY = Row(
    "Who waits for whom",
    (
        Plot(
            "Stages: idle share",
            "Near 0, the GPU tier is the limit. High while sequences wait: the memory tier is.",
            "percentunit",
            (Series(f"1 - sum by (pod) ({STAGE_BUSY})", "{{pod}}"),),
            most=1,
        ),
        Plot(
            "Workers: busy share",
            "Near 1, a worker is short of memory bandwidth or cores, not of room.",
            "percentunit",
            (Series(f"sum by (pod) ({WORKER_BUSY})", "{{pod}}"),),
            most=1,
        ),
        Plot(
            "Lanes",
            "Lanes that hold sequences, and the sequences that a step took along.",
            "short",
            (
                Series(f"sum(glinthawk_lanes{GATEWAY})", "lanes"),
                Series(mean("glinthawk_lane_rows", "gateway"), "rows of a step, mean"),
                Series(quantile(0.95, "glinthawk_lane_rows", "gateway"), "rows of a step, 95%"),
            ),
            axis="lanes, rows",
        ),
        Plot(
            "Steps a second",
            "Trips of a lane, or of a prefill, through all layers.",
            "short",
            (Series(f"sum({rate('glinthawk_steps_total', 'gateway')})", "steps/s"),),
            axis="steps/s",
        ),
    ),
)

TIMES = Row(
    "Where time goes",
    (
        _times("Segment", "GPU work between two attentions.", "glinthawk_segment_seconds", "stage"),
        _times(
            "Attention",
            "One frame's attention on a worker.",
            "glinthawk_attention_seconds",
            "attention",
        ),
        _times(
            "Transfer",
            "From a frame's sending to its answer, the worker's time included.",
            "glinthawk_transfer_seconds",
            "stage",
        ),
        Plot(
            "Bytes sent a second",
            "Payload between processes, by role.",
            "Bps",
            (
                Series(f"sum({rate('glinthawk_sent_bytes_total', 'stage')})", "stages"),
                Series(f"sum({rate('glinthawk_sent_bytes_total', 'attention')})", "workers"),
                Series(f"sum({rate('glinthawk_sent_bytes_total', 'gateway')})", "gateway"),
            ),
            width=8,
        ),
        Plot(
            "Rows of a segment",
            "Rows of all lanes that one segment merged: more is better use of the weights.",
            "short",
            (
                Series(mean("glinthawk_batch_rows", "stage"), "mean"),
                Series(quantile(0.95, "glinthawk_batch_rows", "stage"), "95%"),
            ),
            width=8,
            axis="rows",
        ),
        Plot(
            "Frames dropped a second",
            "Frames of an earlier life of a process; a few after a restart are normal.",
            "short",
            (
                Series(
                    "sum by (pod) (rate(glinthawk_dropped_frames_total"
                    '{namespace="$namespace", deployment="$deployment"}[$__rate_interval]))',
                    "{{pod}}",
                ),
            ),
            width=8,
            axis="frames/s",
        ),
    ),
)

TIERS = Board(
    uid="glinthawk-tiers",
    title="Glinthawk / Tiers",
    about="KV memory against demand, how busy stages and workers are, and where time goes.",
    rows=(SUMMARY, MEMORY, BUSY, TIMES),
)
