"""A gateway that is killed at random moments loses nothing and doubles nothing."""

import os
import random
import subprocess
import sys
import time
from pathlib import Path

from glinthawk.gateway.store.records import BatchStatus, FilePurpose
from glinthawk.gateway.store.sql import open_store
from unit.gateway.jobs.factories import (
    Gateway,
    add_batch,
    build_line,
    read_answers,
    read_texts,
)

NUM_LINES = 300
NUM_KILLS = 20


def start(folder: Path, batch_id: str) -> subprocess.Popen[str]:
    path = os.pathsep.join(entry for entry in sys.path if entry)
    return subprocess.Popen(
        [sys.executable, "-m", "unit.gateway.jobs.killed_gateway", str(folder), batch_id],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


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
    for _ in range(NUM_KILLS):
        process = start(folder, batch.id)
        assert process.stdout is not None
        with process.stdout as pipe:
            pipe.readline()
            time.sleep(source.uniform(0.0, 0.3))
            process.kill()
            process.wait()
    process = start(folder, batch.id)
    with process.stdout as pipe:  # type: ignore[union-attr]
        pipe.read()
    assert process.wait() == 0
    store = open_store(folder)
    batch = store.get_batch(batch.id)
    assert batch.status is BatchStatus.COMPLETED
    assert read_texts(store, batch) == expected
    assert set(read_answers(store, batch)) == {None, *expected}
    counts = batch.counts
    assert (counts.total, counts.completed, counts.failed) == (NUM_LINES + 2, NUM_LINES, 2)
    assert len(store.list_files(limit=9, purpose=FilePurpose.BATCH_OUTPUT)) == 2
    store.close()
