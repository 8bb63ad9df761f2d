"""A gateway that is killed at random moments loses nothing and doubles nothing."""

import os
import random
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest

from glinthawk.gateway.store.records import BatchRecord, BatchStatus, FilePurpose
from glinthawk.gateway.store.sql import open_store
from unit.gateway.jobs.factories import (
    Gateway,
    add_batch,
    build_line,
    read_answers,
    read_texts,
)
from unit.gateway.jobs.killed_gateway import READ_AHEAD

PARTS = (BatchStatus.VALIDATING, BatchStatus.IN_PROGRESS, BatchStatus.FINALIZING)
MOST_WRITES = {
    BatchStatus.VALIDATING: 2,
    BatchStatus.IN_PROGRESS: 4,
    BatchStatus.FINALIZING: 1,
}
"""The most that a life may write in each part of the batch's without bringing it to the next:
lines and refusals; some answers, which all lives together must leave unfinished; a file, or the
note of one."""


def start(folder: Path, batch_id: str, *moment: str) -> subprocess.Popen[str]:
    path = os.pathsep.join(entry for entry in sys.path if entry)
    return subprocess.Popen(
        [sys.executable, "-m", "unit.gateway.jobs.killed_gateway", str(folder), batch_id, *moment],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        text=True,
    )


def live_and_die(folder: Path, batch_id: str, part: BatchStatus, chance: random.Random) -> None:
    """Let a gateway work up to a write in a part of the batch's life, and kill it before, in or
    after that write."""
    least = 2 if part is BatchStatus.IN_PROGRESS else 1
    number = chance.randint(least, MOST_WRITES[part])
    with start(folder, batch_id, part.value, str(number)) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "here\n"
            time.sleep(chance.uniform(0.0, 0.02))
        finally:
            process.kill()
    assert process.returncode == -signal.SIGKILL


def look(folder: Path, batch_id: str) -> BatchRecord:
    store = open_store(folder)
    try:
        return store.get_batch(batch_id)
    finally:
        store.close()


@pytest.mark.parametrize(
    "num_kills", [(2, 4, 3), pytest.param((4, 12, 4), marks=pytest.mark.acceptance)]
)
def test_a_gateway_killed_at_random_moments_answers_each_line_once(
    tmp_path: Path, num_kills: tuple[int, ...]
) -> None:
    kills = [part for part, number in zip(PARTS, num_kills, strict=True) for _ in range(number)]
    num_lines = 50 + num_kills[1] * MOST_WRITES[BatchStatus.IN_PROGRESS] * READ_AHEAD
    lines = [build_line(f"id-{n}") for n in range(num_lines)]
    lines[10:10] = [b"{", build_line("id-3")]
    with Gateway(tmp_path / "undisturbed") as gateway:
        expected = read_texts(gateway.store, gateway.run(lines))
    assert len(expected) == num_lines
    folder, chance = tmp_path / "data", random.Random(5)
    store = open_store(folder)
    batch = add_batch(store, lines)
    store.close()
    seen = []
    for part in kills:
        live_and_die(folder, batch.id, part, chance)
        seen.append(look(folder, batch.id))
    assert [batch.status for batch in seen] == kills, "each kill came in its part"
    done = [0, *(b.counts.completed for b in seen if b.status is BatchStatus.IN_PROGRESS)]
    assert all(before < after < num_lines for before, after in pairwise(done)), "on its way"
    with start(folder, batch.id) as process:
        process.wait()
    assert process.returncode == 0
    store = open_store(folder)
    batch = store.get_batch(batch.id)
    assert batch.status is BatchStatus.COMPLETED
    assert read_texts(store, batch) == expected
    assert set(read_answers(store, batch)) == {None, *expected}
    counts = batch.counts
    assert (counts.total, counts.completed, counts.failed) == (num_lines + 2, num_lines, 2)
    assert len(store.list_files(limit=9, purpose=FilePurpose.BATCH_OUTPUT)) == 2
    store.close()
