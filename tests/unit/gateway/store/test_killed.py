"""A process that writes is killed at any moment: what it was told is kept is there, once."""

import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from glinthawk.gateway.store.records import BatchStatus
from glinthawk.gateway.store.sql import open_store
from unit.gateway.store.factories import add_batch, make_lines

NUM_LINES = 5_000

# Says what was acknowledged after, never before, it was. Files are written by a second thread.
WRITE = """
import sys
import threading
from pathlib import Path

from glinthawk.gateway.store.records import FilePurpose, LineResult
from glinthawk.gateway.store.sql import open_store

store = open_store(Path(sys.argv[1]))
batch_ids = sys.argv[2:]
say = threading.Lock()


def tell(*words):
    with say:
        print(*words, flush=True)


def write_files():
    while True:
        file = store.add_file(
            (b"%065536d" % n for n in range(20)), purpose=FilePurpose.BATCH_OUTPUT, filename="o"
        )
        tell("file", file.id)


tell("epoch", store.reserve_epochs(1))
threading.Thread(target=write_files, daemon=True).start()
waiting = [store.next_lines(batch_id, after=0, limit=10_000) for batch_id in batch_ids]
for start in range(0, 10_000, 3):
    chunks = {
        batch_id: [
            LineResult(line.line_number, line.line_number % 5 == 0, b"%d\\n" % line.line_number)
            for line in lines[max(0, start - 1) : start + 3]  # the first once more
        ]
        for batch_id, lines in zip(batch_ids, waiting)
    }
    store.add_results(chunks)
    for batch_id, chunk in chunks.items():
        tell("line", batch_id, *(answer.line_number for answer in chunk))
"""


def run_and_kill(
    data_dir: Path, batch_ids: list[str], *, after_words: int, delay_s: float
) -> list[list[str]]:
    """Let a process write until it has said so much and a moment more; return what it said."""
    command = [sys.executable, "-c", WRITE, str(data_dir), *batch_ids]
    said = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        for word in child.stdout:
            if not word.endswith("\n"):
                break  # torn by the kill: it was not said
            said.append(word.split())
            if len(said) == after_words:
                time.sleep(delay_s)
                child.kill()
        child.wait()
    return said


def test_all_that_was_acknowledged_is_there_exactly_once(tmp_path: Path) -> None:
    chance = random.Random(20)
    store = open_store(tmp_path)
    batches = [add_batch(store).id for _ in range(2)]
    for batch_id in batches:
        store.add_lines(batch_id, make_lines(range(1, NUM_LINES + 1)))
    inputs = {file.id for file in store.list_files(limit=100)}
    store.close()

    acknowledged: dict[str, set[int]] = {batch_id: set() for batch_id in batches}
    files: set[str] = set()
    epochs: list[int] = []
    for _ in range(6):
        said = run_and_kill(
            tmp_path,
            batches,
            after_words=chance.randrange(2, 120),
            delay_s=chance.uniform(0.0, 0.01),
        )
        for what, *rest in said:
            if what == "epoch":
                epochs.append(int(rest[0]))
            elif what == "file":
                files.add(rest[0])
            elif what == "line":
                acknowledged[rest[0]].update(map(int, rest[1:]))
        check_store(tmp_path, acknowledged, files | inputs)
    assert epochs == sorted(set(epochs))
    assert len(epochs) == 6
    assert files
    assert all(acknowledged.values())


def check_store(data_dir: Path, acknowledged: dict[str, set[int]], files: set[str]) -> None:
    store = open_store(data_dir)
    for batch_id, numbers in acknowledged.items():
        outputs = Counter(map(int, store.iterate_results(batch_id, is_error=False)))
        errors = Counter(map(int, store.iterate_results(batch_id, is_error=True)))
        answered = outputs + errors
        assert numbers <= set(answered)
        assert set(answered.values()) <= {1}
        assert all(number % 5 == 0 for number in errors)
        counts = store.get_batch(batch_id).counts
        assert (counts.completed, counts.failed) == (len(outputs), len(errors))
        waiting = {n.line_number for n in store.next_lines(batch_id, after=0, limit=NUM_LINES)}
        assert waiting == set(range(1, NUM_LINES + 1)) - set(answered)
        assert store.get_batch(batch_id).status is BatchStatus.IN_PROGRESS
    listed = {file.id: file for file in store.list_files(limit=10_000)}
    assert files <= set(listed)
    for file in listed.values():
        assert store.file_path(file.id).stat().st_size == file.num_bytes
    assert {path.name for path in (data_dir / "files").iterdir()} == set(listed)
    store.close()
