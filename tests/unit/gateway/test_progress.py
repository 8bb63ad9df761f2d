import io

import pytest
from rich.console import Console

from glinthawk.gateway.progress import (
    ProgressReporter,
    RateMeter,
    RunNumbers,
    RunSummary,
    build_summary_table,
    format_bytes,
    format_duration,
    format_remote,
)


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def console_of(*, is_terminal: bool) -> tuple[Console, io.StringIO]:
    file = io.StringIO()
    console = Console(file=file, force_terminal=is_terminal, width=120, color_system=None)
    return console, file


def test_rates_are_of_the_last_seconds_only() -> None:
    meter = RateMeter(0.0, window_s=10.0)
    for second in range(1, 21):
        rates = meter.measure(float(second), RunNumbers(9, num_generated_tokens=100 * second))
    assert rates.generated_tokens_per_s == pytest.approx(100.0)
    for second in range(21, 31):
        rates = meter.measure(float(second), RunNumbers(9, num_generated_tokens=2000))
    assert rates.generated_tokens_per_s == 0.0


def test_the_time_left_comes_from_requests_done_by_this_start() -> None:
    meter = RateMeter(0.0)
    assert meter.measure(1.0, RunNumbers(100, 40, num_done_before=40)).eta_s is None
    assert meter.measure(2.0, RunNumbers(100, 50, num_done_before=40)).eta_s == 10.0
    assert meter.measure(3.0, RunNumbers(100, 100, num_done_before=40)).eta_s == 0.0


def test_no_time_gives_no_rate() -> None:
    assert RateMeter(0.0).measure(0.0, RunNumbers(1, num_prompt_tokens=5)).prompt_tokens_per_s == 0


def test_without_a_terminal_there_are_plain_lines_now_and_then() -> None:
    console, file = console_of(is_terminal=False)
    clock = Clock()
    with ProgressReporter(console, clock=clock) as reporter:
        for done in range(12):
            clock.now_s += 1.0
            reporter.update(
                RunNumbers(
                    12, done, num_failed=done // 4, num_prompt_tokens=10 * done,
                    num_generated_tokens=20 * done, kv_used_bytes=3 << 20,
                    kv_capacity_bytes=2 << 30,
                )
            )  # fmt: skip
    lines = file.getvalue().splitlines()
    assert [line.split(" requests")[0] for line in lines] == ["4/12", "9/12", "11/12"]
    assert lines[0] == (
        "4/12 requests | 1 failed | in 8.0 tok/s | out 16.0 tok/s | KV 3.0 MiB / 2.00 GiB | "
        "ETA 0:00:10"
    )


def test_a_run_at_a_gateway_shows_its_lines_alone() -> None:
    console = Console(file=io.StringIO(), width=200)
    with ProgressReporter(console, clock=lambda: 0.0, describe=format_remote) as progress:
        progress.update(RunNumbers(10, num_done=4, num_failed=1, num_done_before=4))
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue() == "4/10 requests | 1 failed | ETA -\n"


def test_the_last_numbers_are_shown_once() -> None:
    console, file = console_of(is_terminal=False)
    with ProgressReporter(console, clock=Clock(), every_s=0.0) as reporter:
        reporter.update(RunNumbers(1, 1))
    assert len(file.getvalue().splitlines()) == 1


def test_a_run_without_news_shows_nothing() -> None:
    console, file = console_of(is_terminal=False)
    with ProgressReporter(console, clock=Clock()):
        pass
    assert file.getvalue() == ""


def test_on_a_terminal_there_is_a_bar() -> None:
    console, file = console_of(is_terminal=True)
    clock = Clock()
    with ProgressReporter(console, clock=clock) as reporter:
        clock.now_s += 2.0
        reporter.update(RunNumbers(10, 5, num_generated_tokens=50, kv_capacity_bytes=1 << 20))
        shown = file.getvalue()
    assert "5/10" in shown
    assert "out 25.0 tok/s" in shown
    assert "ETA 0:00:02" in shown


def table_text(summary: RunSummary) -> str:
    console, file = console_of(is_terminal=False)
    console.print(build_summary_table(summary))
    return file.getvalue()


def test_the_table_shows_what_was_done_and_how_fast() -> None:
    numbers = RunNumbers(10, 10, num_failed=2, num_prompt_tokens=1000, num_generated_tokens=5000)
    rows = [
        [cell.strip() for cell in line.split("\u2502")[1:-1]]
        for line in table_text(RunSummary(numbers, load_s=3.21, run_s=10.0)).splitlines()
        if "\u2502" in line
    ]
    assert rows == [
        ["requests answered", "8"],
        ["requests refused or failed", "2"],
        ["prompt tokens", "1,000"],
        ["generated tokens", "5,000"],
        ["time to load", "3.2 s"],
        ["time to run", "10.0 s"],
        ["prompt tokens/s", "100.0"],
        ["generated tokens/s", "500.0"],
    ]


def test_the_table_says_what_an_earlier_start_did_and_what_is_missing() -> None:
    text = table_text(RunSummary(RunNumbers(10, 7, num_done_before=3), load_s=0.0, run_s=0.0))
    assert "done by an earlier start" in text
    assert "requests not done" in text


def test_sizes_and_times_read_well() -> None:
    assert [format_bytes(size) for size in (0, 1 << 20, 1 << 30)] == [
        "0.0 MiB", "1.0 MiB", "1.00 GiB",
    ]  # fmt: skip
    assert [format_duration(value) for value in (None, 0.4, 75.0, 3600.0)] == [
        "-", "0:00:00", "0:01:15", "1:00:00",
    ]  # fmt: skip
