"""Shows a benchmark's result to people and writes it as JSON."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from glinthawk.errors import InvalidConfig

EXIT_OK = 0

_GIGA = 1e9
_KIB, _MIB = 1 << 10, 1 << 20
_MISSED = "[bold red]MISSED[/bold red]"


def finish(result: dict[str, Any], json_file: Path | None, console: Console | None = None) -> int:
    """Show `result`, write it to `json_file` if one is given, and return the exit code.

    A goal that is missed is shown, it does not fail the command: the measurement was made.

    Raises:
        InvalidConfig: the file cannot be written; the result was shown.
    """
    console = console or Console()
    console.print(_describe_environment(result))
    if "workload" in result:
        console.print(_describe_workload(result["workload"]))
    console.print(build_samples_table(result))
    for sample in result["samples"]:
        if "failure" in sample:
            console.print(f"{sample['engine']} failed: {sample['failure']}", markup=False)
    shown = {goal["name"] for goal in result["goals"]}
    for ratio in result.get("ratios", []):
        if ratio["name"] not in shown:
            console.print(f"       {ratio['name']}: {ratio['value']:.2f}", markup=False)
    for goal in result["goals"]:
        console.print(describe_goal(goal), soft_wrap=True)
    if json_file is not None:
        _write(result, json_file)
        console.print(f"written to {json_file}", markup=False)
    return EXIT_OK


def describe_goal(goal: dict[str, Any]) -> str:
    """Return one line, with rich's markup, on a goal: holds, or missed by how much."""
    name, value, wanted = escape(goal["name"]), goal["value"], goal["goal"]
    if goal.get("at_most"):
        figures = f"{name}: {value:g}, goal <= {wanted:g}"
        return f"[green]holds[/green]  {figures}" if goal["holds"] else f"{_MISSED} {figures}"
    figures = f"{name}: {value:.2f}, goal >= {wanted:.2f}"
    if goal["holds"]:
        return f"[green]holds[/green]  {figures}"
    short = (wanted - value) / wanted
    return f"{_MISSED} {figures}: {wanted - value:.3f} ({short:.1%}) short"


def build_samples_table(result: dict[str, Any]) -> Table:
    """Return the samples of a benchmark as a table."""
    name = result["benchmark"]
    columns = _COLUMNS.get(name) or _guess_columns(result["samples"])
    table = Table(title=f"bench {name}")
    for column in columns:
        table.add_column(column.title, justify="left" if column.is_text else "right")
    for sample in result["samples"]:
        table.add_row(*(escape(column.show(sample)) for column in columns))
    return table


@dataclass(frozen=True)
class _Column:
    """A column: its title and how a sample's cell is shown."""

    title: str
    show: Callable[[dict[str, Any]], str]
    is_text: bool = False


def _number(title: str, *path: str, scale: float = 1.0, digits: int = 2) -> _Column:
    """Return a column of the number at `path` in a sample, divided by `scale`."""

    def show(sample: dict[str, Any]) -> str:
        value = _find(sample, path)
        return "-" if value is None else f"{value / scale:.{digits}f}"

    return _Column(title, show)


def _text(title: str, *path: str) -> _Column:
    def show(sample: dict[str, Any]) -> str:
        value = _find(sample, path)
        return "-" if value is None else str(value)

    return _Column(title, show, is_text=True)


def _find(sample: dict[str, Any], path: tuple[str, ...]) -> Any:
    value: Any = sample
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _show_size(num_bytes: float) -> str:
    unit, name = (_MIB, "MiB") if num_bytes >= _MIB else (_KIB, "KiB")
    return f"{num_bytes / unit:g} {name}"


def _show_runs(sample: dict[str, Any]) -> str:
    runs = [f"{run['tokens_per_second']:.0f}" for run in sample["runs"]]
    return " ".join(runs) or "failed"


def _show_version(sample: dict[str, Any]) -> str:
    versions = [run["version"] for run in sample["runs"] if "version" in run]
    return f"{sample['engine']} {versions[0]}" if versions else sample["engine"]


_COLUMNS = {
    "attention": (
        _number("context", "context", digits=0),
        _number("batch", "batch", digits=0),
        _number("q/kv heads", "query_heads_per_kv_head", digits=0),
        _number("head size", "head_dim", digits=0),
        _number("KV MiB", "kv_bytes", scale=_MIB, digits=0),
        _number("GB/s", "bytes_per_second", scale=_GIGA),
        _number("read GB/s", "read_bytes_per_second", scale=_GIGA),
        _number("share", "share_of_bandwidth"),
        _number("torch GB/s", "torch_bytes_per_second", scale=_GIGA),
    ),
    "transport": (
        _text("mode", "mode"),
        _Column("payload", lambda sample: _show_size(sample["bytes"])),
        _number("raw GB/s", "raw", "bytes_per_second", scale=_GIGA),
        _number("tcp GB/s", "tcp", "bytes_per_second", scale=_GIGA),
        _number("tcp / raw", "tcp", "over_raw"),
        _number("tcp us", "tcp", "seconds_median", scale=1e-6, digits=0),
        _number("tcp p95 us", "tcp", "seconds_p95", scale=1e-6, digits=0),
        _number("grpc GB/s", "grpc", "bytes_per_second", scale=_GIGA),
        _number("grpc / raw", "grpc", "over_raw"),
    ),
    "batch": (
        _Column("engine", _show_version, is_text=True),
        _number("tokens/s", "tokens_per_second", digits=0),
        _number("run s", "run_s"),
        _number("load s", "load_s"),
        _Column("tokens/s of each run", _show_runs, is_text=True),
    ),
    "serve": (
        _text("door", "door"),
        _number("tokens/s", "tokens_per_second", digits=0),
        _number("run s", "run_s"),
        _number("wall s", "wall_s"),
        _number("first token s", "first_token_s"),
        _Column("tokens/s of each run", _show_runs, is_text=True),
    ),
    "drain": (
        _text("way", "way"),
        _number("sequences", "sequences", digits=0),
        _number("context", "context", digits=0),
        _number("took s", "took_s"),
        _number("pause s, median", "pause_s_median"),
        _number("most", "pause_s_most"),
        _number("tokens", "tokens", digits=0),
        _number("MB copied", "bytes", scale=1e6, digits=1),
    ),
    "memory": (
        _number("stages", "stages", digits=0),
        _text("KV memory", "kv_memory"),
        _number("sequences", "sequences", digits=0),
        _number("KV resident MiB", "kv_resident", scale=_MIB, digits=0),
        _number("overhead MiB, at rest", "overhead_at_rest", scale=_MIB, digits=0),
        _number("most", "overhead_most", scale=_MIB, digits=0),
        _number("after", "overhead_after", scale=_MIB, digits=0),
        _number("page tables MiB", "page_tables", scale=_MIB),
    ),
    "job": (
        _number("lines", "lines", digits=0),
        _number("input MiB", "input_bytes", scale=_MIB, digits=0),
        _number("validated s", "validation_s", digits=1),
        _number("ended s", "cancelling_s", digits=1),
        _number("gateway MiB", "gateway_at_rest", scale=_MIB, digits=0),
        _number("peak", "gateway_peak", scale=_MIB, digits=0),
        _number("validation", "validation_peak", scale=_MIB, digits=0),
    ),
    "chaos": (
        _text("event", "event"),
        _number("count", "count", digits=0),
        _number("recovery s, median", "recovery_s_median"),
        _number("p95", "recovery_s_p95"),
        _number("most", "recovery_s_most"),
    ),
}


def _guess_columns(samples: list[dict[str, Any]]) -> tuple[_Column, ...]:
    """Return a column for each plain value of the samples of a benchmark not known here."""
    names = dict.fromkeys(name for sample in samples for name in sample)
    plain = [n for n in names if not any(isinstance(s.get(n), dict | list) for s in samples)]
    return tuple(_text(name.replace("_", " "), name) for name in plain)


def _describe_environment(result: dict[str, Any]) -> str:
    environment = result["environment"]
    parts = [f"{name} {value}" for name, value in environment.items() if _is_plain(value)]
    return escape(", ".join(parts))


def _is_plain(value: Any) -> bool:
    return value is not None and not isinstance(value, dict | list)


def _describe_workload(workload: dict[str, Any]) -> str:
    return escape(", ".join(f"{k.replace('_', ' ')} {v}" for k, v in workload.items()))


def _write(result: dict[str, Any], path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise InvalidConfig(f"--json {path} cannot be written: {error}") from error
