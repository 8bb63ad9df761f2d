"""The worked example of docs/adr/0010-kv-demand.md, computed by the scheduler itself."""

import itertools
import re
from pathlib import Path

import pytest

from glinthawk.core.dtype import DType
from glinthawk.core.geometry import KVGeometry
from glinthawk.core.ids import SequenceId
from glinthawk.core.sampling import SamplingParams
from glinthawk.core.step import SampledToken, SequenceStart, StepResult
from glinthawk.scheduler import Scheduler, SchedulerConfig, SequenceGroup

PAGE = Path(__file__).resolve().parents[3] / "docs" / "adr" / "0010-kv-demand.md"
GEOMETRY = KVGeometry(30, 9, 3, 64, DType.FLOAT16, (None,) * 30)
PROMPT, LIMIT, GENERATED = 100, 512, 61


class Example:
    """SmolLM2's cache; lines of 100 prompt tokens that may have 512 more."""

    def __init__(self) -> None:
        config = SchedulerConfig(geometry=GEOMETRY, num_lanes=2, max_lane_rows=256)
        self.scheduler = Scheduler(config)
        self._numbers = itertools.count(1)

    def add_worker(self) -> None:
        self.scheduler.add_worker("w", 1 << 30)

    def add_lines(self, number: int) -> None:
        for _ in range(number):
            identity = SequenceId(next(self._numbers))
            start = SequenceStart(identity, tuple(range(PROMPT)), PROMPT, SamplingParams())
            self.scheduler.add(SequenceGroup((start,), LIMIT))

    def run(self, number: int) -> None:
        """Let so many lines, and no others, generate their first tokens."""
        self.add_lines(number)
        generated = 0
        while generated < number * GENERATED:
            for plan in self.scheduler.plan():
                sampled = tuple(
                    SampledToken(SequenceId(identity), 7)
                    for identity, is_sampled in zip(
                        plan.sequences.tolist(), plan.samples, strict=True
                    )
                    if is_sampled
                )
                generated += len(sampled)
                self.scheduler.commit(StepResult(plan.lane, plan.step, sampled))

    def measure(self) -> tuple[int, int]:
        """Return pages demanded, and pages in use."""
        stats = self.scheduler.stats()
        page_bytes = GEOMETRY.page_bytes
        return stats.kv_demanded_bytes // page_bytes, stats.kv_used_bytes // page_bytes


def read_rows() -> dict[str, list[int]]:
    """Return the example's table: situation, then waiting, running, N, pages."""
    rows = {}
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 6 and re.fullmatch(r"[A-E]", cells[0]):
            rows[cells[0]] = [int(cell.replace(",", "")) for cell in cells[2:]]
    return rows


def build(situation: str) -> Example:
    example = Example()
    if situation in "CDE":
        example.add_worker()
        example.run(4)
    if situation in "BE":
        example.add_lines(10_000)
    if situation == "D":
        example.add_lines(10)
    return example


def test_the_example_has_every_situation() -> None:
    assert sorted(read_rows()) == list("ABCDE")


@pytest.mark.parametrize("situation", "ABCDE")
def test_the_scheduler_demands_what_the_example_says(situation: str) -> None:
    num_waiting, num_running, num_admissible, pages = read_rows()[situation]
    example = build(situation)
    stats = example.scheduler.stats()
    assert stats.num_waiting == num_waiting
    assert stats.num_decoding + stats.num_prefilling == num_running
    assert example.measure()[0] == pages
    rows = 2 * 256
    assert num_admissible == min(num_waiting, rows - num_running)


def test_the_pages_of_the_example_have_the_size_it_says() -> None:
    text = PAGE.read_text(encoding="utf-8")
    (shown,) = re.findall(r"a page has ([\d,]+) bytes", text)
    assert int(shown.replace(",", "")) == GEOMETRY.page_bytes


def test_demand_falls_to_what_runs_when_the_queue_is_gone() -> None:
    crowded, alone = build("E"), build("C")
    waiting = [SequenceId(number) for number in range(5, 10_005)]
    crowded.scheduler.abort(waiting)
    assert crowded.measure() == alone.measure()
