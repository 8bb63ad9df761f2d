"""What `glinthawk status` shows: an inspection as tables, once or every second.

It is told documents and shows them; what they mean is said in inspection.py.
"""

import json
import time
from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from glinthawk.errors import PeerUnavailable
from glinthawk.gateway.control_client import ControlClient
from glinthawk.gateway.progress import format_bytes, format_duration

EVERY_S = 1.0
_BAR_CELLS = 24

_COLOURS = {"active": "green", "draining": "yellow", "drained": "cyan", "lost": "red"}


def show_status(client: ControlClient, console: Console, *, as_json: bool) -> None:
    """Show how a gateway stands now.

    Raises:
        PeerUnavailable: it does not answer.
    """
    document = client.inspect()
    if as_json:
        console.file.write(json.dumps(document, indent=2) + "\n")
        return
    console.print(build_view(document))


def watch_status(
    client: ControlClient, console: Console, *, sleep: Callable[[float], None] = time.sleep
) -> None:
    """Keep it on the screen, until an exception such as KeyboardInterrupt ends it.

    A gateway that goes away meanwhile may come back: the last view stays, and says so.

    Raises:
        PeerUnavailable: it does not answer at the start.
    """
    view = build_view(client.inspect())
    with Live(view, console=console, auto_refresh=False, screen=console.is_terminal) as live:
        while True:
            live.refresh()
            sleep(EVERY_S)
            try:
                view = build_view(client.inspect())
                live.update(view)
            except PeerUnavailable as error:
                live.update(Group(Text(str(error), style="red"), Text(), view))


def build_view(document: Mapping[str, Any]) -> RenderableType:
    """Return an inspection as people read it."""
    ready = Text("ready", "bold green") if document["is_ready"] else Text("not ready", "bold red")
    head = Text.assemble(
        ready,
        f"  {document['model']}  (glinthawk {document['version']}, "
        f"protocol {document['protocol_version']})",
    )
    parts: list[RenderableType] = [head, _build_figures(document)]
    parts += [Text("\nGPU tier", "bold"), _build_stages(document)]
    parts += [Text("\nMemory tier", "bold"), _build_workers(document)]
    parts += [Text("\nJobs", "bold"), _build_jobs(document)]
    return Group(*parts)


def _build_figures(document: Mapping[str, Any]) -> Table:
    kv = document["kv"]
    used, demanded, capacity = kv["used_bytes"], kv["demanded_bytes"], kv["capacity_bytes"]
    sequences = (
        f"{document['num_decoding']:,} decoding, {document['num_prefilling']:,} in prefill, "
        f"{document['num_waiting']:,} waiting"
    )
    interactive = document.get("num_waiting_interactive")  # earlier releases do not say
    if interactive:
        sequences += f" ({interactive:,} interactive)"
    tokens = (
        f"{document['tokens_out_per_s']:,.1f} out per second; {document['tokens_in']:,} in, "
        f"{document['tokens_out']:,} out, {document['recomputed_tokens']:,} recomputed, "
        f"{document['moved_tokens']:,} moved"
    )
    table = Table.grid(padding=(0, 2))
    for name, value in (
        ("KV used", f"{format_bytes(used)}  {_percent(used, capacity)}"),
        ("KV demanded", f"{format_bytes(demanded)}  {_percent(demanded, capacity)}"),
        ("KV capacity", format_bytes(capacity)),
        ("sequences", sequences),
        ("tokens", tokens),
    ):
        table.add_row(name, value)
    return table


def _build_stages(document: Mapping[str, Any]) -> RenderableType:
    stages = document["stages"]
    missing = document["num_stages"] - len(stages)
    table = _build_table("stage", "layers", "busy", "address")
    for stage in stages:
        layers = f"{stage['first_layer']} to {stage['last_layer'] - 1}"
        table.add_row(stage["name"], layers, _share(stage["busy_share"]), stage["address"])
    if not missing:
        return table
    text = Text(f"{missing} of {document['num_stages']} stages are missing", "red")
    return Group(table, text) if stages else text


def _build_workers(document: Mapping[str, Any]) -> RenderableType:
    workers = document["workers"]
    if not workers:
        return Text("no attention worker is known", "red")
    table = _build_table("worker", "state", "sequences", "KV used / capacity", "busy", "address")
    for worker in sorted(workers, key=lambda one: str(one["name"])):
        used, capacity = worker["kv_used_bytes"], worker["kv_capacity_bytes"]
        table.add_row(
            worker["name"],
            Text(worker["state"], _COLOURS.get(worker["state"], "")),
            f"{worker['num_sequences']:,}",
            f"{format_bytes(used)} / {format_bytes(capacity)}",
            _share(worker["busy_share"]),
            worker["address"] or "-",
        )
    return table


def _build_jobs(document: Mapping[str, Any]) -> RenderableType:
    if not document["jobs"]:
        return Text("none", "dim")
    table = _build_table("batch", "status", "", "lines", "failed", "tokens/s", "ETA")
    for job in document["jobs"]:
        total, done = job["num_lines"], job["num_done"]
        table.add_row(
            job["batch_id"],
            job["status"],
            ProgressBar(total=max(1, total), completed=done, width=_BAR_CELLS),
            f"{done:,} / {total:,}",
            f"{job['num_failed']:,}",
            f"{job['tokens_per_s']:,.1f}",
            format_duration(job["eta_s"]),
        )
    problems = [
        Text(f"{job['batch_id']}: {job['problem']}", "red")
        for job in document["jobs"]
        if job.get("problem") is not None  # gateways of earlier releases do not say
    ]
    return Group(table, *problems)


def _build_table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _share(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.0f}%"


def _percent(part: int, whole: int) -> str:
    return f"({100 * part / whole:.0f}%)" if whole else ""
