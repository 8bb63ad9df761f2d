"""A gateway that is killed at random moments loses nothing and doubles nothing."""

import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import IO

from glinthawk.gateway.store.records import BatchRecord, BatchStatus, FilePurpose
from glinthawk.gateway.store.sql import open_store
from unit.gateway.jobs.factories import (
    Gateway,
    add_batch,
    build_line,
    read_answers,
    read_texts,
)

NUM_LINES = 300
KILLS = ("validating",) * 4 + ("in_progress",) * 12 + ("finalizing",) * 4
"""In which part of the batch's life each of the kills comes."""


def start(folder: Path, batch_id: str) -> subprocess.Popen[str]:
    path = os.pathsep.join(entry for entry in sys.path if entry)
    return subprocess.Popen(
        [sys.executable, "-m", "unit.gateway.jobs.killed_gateway", str(folder), batch_id],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def wait_for_moment(told: IO[str], when: str, num_done: int, source: random.Random) -> None:
    """Return at a random moment of a part of the batch's life, or when the process has ended."""
    if when == "validating":
        told.readline()
        time.sleep(source.uniform(0.0, 0.5))
        return
    num_more = source.randint(0, 15)
    for line in told:
        status, _, completed = line.partition(" ")
        is_further = when == "in_progress" and int(completed) >= num_done + num_more
        if is_further or status not in ("validating", "in_progress"):
            break
    time.sleep(source.uniform(0.0, 0.02))


def look(folder: Path, batch_id: str) -> BatchRecord:
    store = open_store(folder)
    try:
        return store.get_batch(batch_id)
    finally:
        store.close()


def test_a_gateway_killed_at_random_moments_answers_each_line_once(tmp_path: Path) -> None:
    lines = [build_line(f"id-{n}") for n in range(NUM_LINES)]
    lines[10:10] = [b"{", build_line("id-3")]
    with Gateway(tmp_path / "undisturbed") as gateway:
        expected = read_texts(gateway.store, gateway.run(lines))
    assert len(expected) == NUM_LINES
    folder, source = tmp_path / "data", random.Random(5)
    store = open_store(folder)
    batch = add_batch(store, lines)
    store.close()
    seen = [batch]
    for when in KILLS:
        with start(folder, batch.id) as process:
            assert process.stdout is not None
            try:
                wait_for_moment(process.stdout, when, seen[-1].counts.completed, source)
            finally:
                process.kill()
        seen.append(look(folder, batch.id))
    assert len({batch.counts.completed for batch in seen}) > 8, "it was killed on its way"
    with start(folder, batch.id) as process:
        assert process.stdout is not None
        process.stdout.read()
    assert process.returncode == 0
    store = open_store(folder)
    batch = store.get_batch(batch.id)
    assert batch.status is BatchStatus.COMPLETED
    assert read_texts(store, batch) == expected
    assert set(read_answers(store, batch)) == {None, *expected}
    counts = batch.counts
    assert (counts.total, counts.completed, counts.failed) == (NUM_LINES + 2, NUM_LINES, 2)
    assert len(store.list_files(limit=9, purpose=FilePurpose.BATCH_OUTPUT)) == 2
    store.close()
