"""What the user of the batch command sees: a bar on a terminal, plain lines elsewhere, and a
table at the end. It is told numbers and shows them; it measures nothing but the time.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.table import Table

BAR_EVERY_S = 0.2
LINE_EVERY_S = 5.0

_RATE_WINDOW_S = 10.0
_MIB = 1 << 20
_GIB = 1 << 30


@dataclass(frozen=True)
class RunNumbers:
    """A run as it stands. All count from the start of this command, except that num_done and
    num_failed include what an earlier start of the same run left (num_done_before of num_done).

    num_failed: those of num_done whose answer is an error.
    """

    num_lines: int
    num_done: int = 0
    num_failed: int = 0
    num_done_before: int = 0
    num_prompt_tokens: int = 0
    num_generated_tokens: int = 0
    kv_used_bytes: int = 0
    kv_capacity_bytes: int = 0


@dataclass(frozen=True)
class Rates:
    """Tokens per second over the last seconds; eta_s: None until a request is done."""

    prompt_tokens_per_s: float
    generated_tokens_per_s: float
    eta_s: float | None


class RateMeter:
    """Turns totals at points of time into rates over a sliding window."""

    def __init__(self, started_at_s: float, window_s: float = _RATE_WINDOW_S) -> None:
        self._started_at_s = started_at_s
        self._window_s = window_s
        self._points: deque[tuple[float, int, int]] = deque([(started_at_s, 0, 0)])

    def measure(self, now_s: float, numbers: RunNumbers) -> Rates:
        """Add a point and return the rates up to it."""
        point = (now_s, numbers.num_prompt_tokens, numbers.num_generated_tokens)
        self._points.append(point)
        # The oldest point stays at or before the window's edge, so that the window is full.
        while len(self._points) > 2 and self._points[1][0] <= now_s - self._window_s:
            self._points.popleft()
        first = self._points[0]
        elapsed_s = now_s - first[0]
        return Rates(
            prompt_tokens_per_s=_per_second(point[1] - first[1], elapsed_s),
            generated_tokens_per_s=_per_second(point[2] - first[2], elapsed_s),
            eta_s=self._estimate(now_s, numbers),
        )

    def _estimate(self, now_s: float, numbers: RunNumbers) -> float | None:
        """Return the time that is left if requests go on finishing as on average so far."""
        num_left = numbers.num_lines - numbers.num_done
        if num_left <= 0:
            return 0.0
        num_done_now = numbers.num_done - numbers.num_done_before
        if num_done_now <= 0:
            return None
        return num_left * (now_s - self._started_at_s) / num_done_now


class ProgressReporter:
    """Shows a run on `console` while it goes on: a bar if that is a terminal, lines if not.

    `update` may be called at every step; it shows at most every `every_s` seconds. describe:
    what stands beside the bar; the default is `format_rates`.
    """

    def __init__(
        self,
        console: Console,
        *,
        clock: Callable[[], float],
        every_s: float | None = None,
        describe: Callable[[RunNumbers, Rates], str] | None = None,
    ) -> None:
        self._describe = describe or format_rates
        default_s = BAR_EVERY_S if console.is_terminal else LINE_EVERY_S
        self._every_s = default_s if every_s is None else every_s
        self._console = console
        self._clock = clock
        self._shown_at_s = clock()
        self._meter = RateMeter(self._shown_at_s)
        self._bar: tuple[Progress, TaskID] | None = None
        self._last: RunNumbers | None = None

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            progress = Progress(
                TextColumn("requests"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[text]}"),
                console=self._console,
                auto_refresh=False,
                transient=True,
            )
            self._bar = (progress, progress.add_task("", total=None, text=""))
            progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._last is not None:
            self._show(self._last)
        if self._bar is not None:
            self._bar[0].stop()

    def update(self, numbers: RunNumbers) -> None:
        """Take the newest numbers, and show them if it is time."""
        self._last = numbers
        if self._clock() - self._shown_at_s >= self._every_s:
            self._show(numbers)

    def _show(self, numbers: RunNumbers) -> None:
        self._last = None
        self._shown_at_s = self._clock()
        text = self._describe(numbers, self._meter.measure(self._shown_at_s, numbers))
        if self._bar is None:
            line = f"{numbers.num_done}/{numbers.num_lines} requests | {text}"
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)
            return
        progress, task = self._bar
        progress.update(task, completed=numbers.num_done, total=numbers.num_lines, text=text)
        progress.refresh()


@dataclass(frozen=True)
class RunSummary:
    """A finished run. load_s: until the first request was admitted; run_s: from then on."""

    numbers: RunNumbers
    load_s: float
    run_s: float


def format_rates(numbers: RunNumbers, rates: Rates) -> str:
    """Return what stands beside the bar, or in a plain line."""
    parts = [
        f"in {rates.prompt_tokens_per_s:,.1f} tok/s",
        f"out {rates.generated_tokens_per_s:,.1f} tok/s",
        f"KV {format_bytes(numbers.kv_used_bytes)} / {format_bytes(numbers.kv_capacity_bytes)}",
        f"ETA {format_duration(rates.eta_s)}",
    ]
    if numbers.num_failed:
        parts.insert(0, f"{numbers.num_failed} failed")
    return " | ".join(parts)


def format_remote(numbers: RunNumbers, rates: Rates) -> str:
    """Return what stands beside the bar of a run of which only lines are known."""
    failed = f"{numbers.num_failed} failed | " if numbers.num_failed else ""
    return f"{failed}ETA {format_duration(rates.eta_s)}"


def build_summary_table(summary: RunSummary) -> Table:
    """Return the table that closes a run."""
    numbers, run_s = summary.numbers, summary.run_s
    num_ok = numbers.num_done - numbers.num_failed
    rows = [
        ("requests answered", f"{num_ok:,}"),
        ("requests refused or failed", f"{numbers.num_failed:,}"),
    ]
    if numbers.num_done_before:
        rows.append(("of these done by an earlier start", f"{numbers.num_done_before:,}"))
    if numbers.num_done < numbers.num_lines:
        rows.append(("requests not done", f"{numbers.num_lines - numbers.num_done:,}"))
    rows += [
        ("prompt tokens", f"{numbers.num_prompt_tokens:,}"),
        ("generated tokens", f"{numbers.num_generated_tokens:,}"),
        ("time to load", f"{summary.load_s:,.1f} s"),
        ("time to run", f"{run_s:,.1f} s"),
        ("prompt tokens/s", f"{_per_second(numbers.num_prompt_tokens, run_s):,.1f}"),
        ("generated tokens/s", f"{_per_second(numbers.num_generated_tokens, run_s):,.1f}"),
    ]
    table = Table(show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for name, value in rows:
        table.add_row(name, value)
    return table


def format_bytes(num_bytes: int) -> str:
    """Return a size in MiB, or in GiB from one on."""
    if num_bytes >= _GIB:
        return f"{num_bytes / _GIB:,.2f} GiB"
    return f"{num_bytes / _MIB:,.1f} MiB"


def format_duration(duration_s: float | None) -> str:
    """Return h:mm:ss, or a dash if it is not known."""
    if duration_s is None:
        return "-"
    return str(timedelta(seconds=round(duration_s)))


def _per_second(count: int, elapsed_s: float) -> float:
    return count / elapsed_s if elapsed_s > 0 else 0.0
