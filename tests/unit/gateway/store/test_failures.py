"""A full, locked, read-only or failing disk: a clear error, nothing half done, then on it goes.

The store is the real one on a real file system. A full disk is a small tmpfs; where mounting
is refused, a limit on the size of files, which makes the kernel refuse writes, stands in.
"""

import itertools
import os
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from glinthawk.errors import InvalidRequest, InvariantBroken, StoreUnavailable
from glinthawk.gateway.store.failures import translate_database_failures
from glinthawk.gateway.store.interface import Store
from glinthawk.gateway.store.records import BatchRecord, FilePurpose, KeyRecord
from glinthawk.gateway.store.sql import open_store
from unit.gateway.store.factories import (
    START,
    add_batch,
    add_file,
    make_line,
    make_lines,
    make_result,
)

PAYLOAD = b"x" * 100_000
BALLAST_BYTES = 512 << 10


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(disk)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"a small disk cannot be mounted here: {done.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def fill(disk: Path) -> Path:
    """Leave not a byte free."""
    ballast = disk / "filler"
    with ballast.open("wb", buffering=0) as file:
        for size in (65_536, 1):
            try:
                while True:
                    file.write(b"\0" * size)
            except OSError:
                pass
    return ballast


@contextmanager
def limit_file_sizes(num_bytes: int) -> Iterator[None]:
    """Have the kernel refuse (EFBIG) what would make any file of this process longer."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


WRITES: dict[str, Callable[[Store, BatchRecord], object]] = {
    "add_file": lambda store, _: store.add_file(
        [PAYLOAD], purpose=FilePurpose.BATCH_OUTPUT, filename="x"
    ),
    "create_batch": lambda store, batch: add_batch(
        store, batch.input_file_id, metadata={"x": PAYLOAD.decode()}
    ),
    "update_batch": lambda store, batch: store.update_batch(
        batch.id, only_from=[batch.status], metadata={"x": PAYLOAD.decode()}
    ),
    "add_lines": lambda store, batch: store.add_lines(
        batch.id, [make_line(number, f"{number:0500}") for number in range(10, 400)]
    ),
    "add_results": lambda store, batch: store.add_results(
        {batch.id: [make_result(1, content=PAYLOAD)]}
    ),
    "add_key": lambda store, _: store.add_key(KeyRecord("k" * 100_000, "ci", "0" * 64, START)),
}


def snapshot(store: Store, batch: BatchRecord) -> object:
    """Return everything one can see of a store."""
    return (
        store.list_files(limit=100),
        store.list_batches(limit=100),
        store.next_lines(batch.id, after=0, limit=1_000),
        [list(store.iterate_results(batch.id, is_error=kind)) for kind in (True, False)],
        store.list_keys(),
        sorted(store.file_path(batch.input_file_id).parent.iterdir()),
    )


def prepare(data_dir: Path) -> tuple[Store, BatchRecord]:
    store = open_store(data_dir, busy_timeout_s=0.2)
    batch = add_batch(store)
    store.add_lines(batch.id, make_lines([1, 2]))
    return store, batch


def check_refused_then_done(
    store: Store, batch: BatchRecord, write: Callable[[Store, BatchRecord], object], says: str
) -> Iterator[None]:
    """Try `write` in vain, twice; once the test has mended things, see it succeed."""
    before = snapshot(store, batch)
    for _ in range(2):
        with pytest.raises(StoreUnavailable, match=says) as refusal:
            write(store, batch)
        assert "tmp" not in str(refusal.value), "callers read it, and paths are not for them"
        assert snapshot(store, batch) == before
    yield
    write(store, batch)
    assert snapshot(store, batch) != before
    store.close()


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES.keys())
def test_a_full_disk_refuses_and_the_same_call_succeeds_later(
    small_disk: Path, write: Callable[[Store, BatchRecord], object]
) -> None:
    store, batch = prepare(small_disk / "data")
    ballast = fill(small_disk)
    steps = check_refused_then_done(store, batch, write, r"is full; free space")
    next(steps)
    ballast.unlink()
    assert next(steps, None) is None


def test_a_disk_that_fills_up_while_results_come_loses_none_of_those_taken(
    small_disk: Path,
) -> None:
    store, batch = prepare(small_disk / "data")
    taken: list[int] = []

    def answer_for_ever() -> None:
        for number in itertools.count():
            store.add_results({batch.id: [make_result(number, content=b"%d\n" % number * 5_000)]})
            taken.append(number)

    with pytest.raises(StoreUnavailable, match="is full"):
        answer_for_ever()
    assert len(taken) > 10
    assert store.get_batch(batch.id).counts.completed == len(taken)
    contents = list(store.iterate_results(batch.id, is_error=False))
    assert contents == [b"%d\n" % number * 5_000 for number in taken]
    store.close()
    again = open_store(small_disk / "data")
    assert again.get_batch(batch.id).counts.completed == len(taken)
    again.close()


@pytest.mark.parametrize("size_bytes", [400_000, 10])
def test_a_file_can_be_deleted_from_a_full_disk_again_and_again(
    small_disk: Path, size_bytes: int
) -> None:
    store = open_store(small_disk / "data", ballast_bytes=BALLAST_BYTES)
    files = [add_file(store, b"x" * size_bytes) for _ in range(4)]
    batch = add_batch(store, files[0].id)
    fill(small_disk)
    with pytest.raises(StoreUnavailable, match="is full"):
        add_file(store, PAYLOAD)
    with pytest.raises(InvalidRequest, match="is the input of batch"):
        store.delete_file(files[0].id)
    for file in files[1:]:
        store.delete_file(file.id)
    assert {file.id for file in store.list_files(limit=9)} == {files[0].id}
    assert store.get_batch(batch.id) == batch
    store.close()


def test_the_room_for_deletions_is_there_again_when_a_deletion_has_freed_as_much(
    small_disk: Path,
) -> None:
    store = open_store(small_disk / "data", ballast_bytes=BALLAST_BYTES)
    ballast = small_disk / "data" / "ballast"
    assert ballast.stat().st_blocks * 512 >= BALLAST_BYTES
    large = add_file(store, b"x" * 2 * BALLAST_BYTES)
    fill(small_disk)
    store.delete_file(large.id)
    assert ballast.stat().st_blocks * 512 >= BALLAST_BYTES
    add_file(store, PAYLOAD)
    store.close()


def test_a_gateway_starts_on_a_full_disk_with_what_is_kept_for_deletions(small_disk: Path) -> None:
    store = open_store(small_disk / "data", ballast_bytes=BALLAST_BYTES)
    file = add_file(store, PAYLOAD)
    store.close()
    fill(small_disk)
    store = open_store(small_disk / "data", ballast_bytes=BALLAST_BYTES)
    store.delete_file(file.id)
    assert list(store.list_files(limit=9)) == []
    store.close()


def test_no_room_is_kept_where_there_is_little(small_disk: Path) -> None:
    store = open_store(small_disk / "data", ballast_bytes=3 << 20)
    assert not (small_disk / "data" / "ballast").exists()
    file = add_file(store)
    fill(small_disk)
    with pytest.raises(StoreUnavailable, match="is full"):
        store.delete_file(file.id)
    store.close()


def test_a_store_cannot_be_opened_on_a_full_disk_but_later(small_disk: Path) -> None:
    ballast = fill(small_disk)
    for _ in range(2):
        with pytest.raises(StoreUnavailable, match=f"{small_disk}: .*is full"):
            open_store(small_disk)
    ballast.unlink()
    open_store(small_disk).close()


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES.keys())
def test_writes_the_kernel_refuses_change_nothing_and_succeed_later(
    tmp_path: Path, write: Callable[[Store, BatchRecord], object]
) -> None:
    store, batch = prepare(tmp_path)
    steps = check_refused_then_done(store, batch, write, r"input/output error|is full")
    with limit_file_sizes(50_000):
        next(steps)
    assert next(steps, None) is None


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES.keys())
def test_a_lock_held_by_another_process_is_said_to_be_one(
    tmp_path: Path, write: Callable[[Store, BatchRecord], object]
) -> None:
    store, batch = prepare(tmp_path)
    other = sqlite3.connect(tmp_path / "glinthawk.db", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    steps = check_refused_then_done(store, batch, write, r"locked by another process; end what")
    next(steps)
    other.execute("ROLLBACK")
    assert next(steps, None) is None
    other.close()


def test_opening_waits_for_a_lock_only_so_long(tmp_path: Path) -> None:
    other = sqlite3.connect(tmp_path / "glinthawk.db", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(StoreUnavailable, match="locked by another process"):
        open_store(tmp_path, busy_timeout_s=0.2)
    other.close()
    open_store(tmp_path).close()


def test_a_file_that_is_no_database_is_said_to_be_damaged(tmp_path: Path) -> None:
    (tmp_path / "glinthawk.db").write_bytes(b"no database " * 1_000)
    with pytest.raises(StoreUnavailable, match="damaged database; stop the gateway and restore"):
        open_store(tmp_path)


def test_what_was_written_stands_in_no_error(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.add_key(KeyRecord("key_1", "ci", "0" * 64, START))
    with pytest.raises(InvariantBroken, match=r"keys\.id") as caught:
        store.add_key(KeyRecord("key_1", "other", "5ec7e7" * 10, START))
    assert "5ec7e7" not in f"{caught.value} {caught.value.__cause__}"
    store.close()


def test_a_database_that_is_used_wrongly_is_a_defect_and_no_outage() -> None:
    connection = sqlite3.connect(":memory:")
    with pytest.raises(InvariantBroken), translate_database_failures():
        connection.execute("SELECT * FROM nowhere")
    connection.close()


def test_a_value_that_the_store_cannot_hold_is_its_makers_fault(tmp_path: Path) -> None:
    store, _ = prepare(tmp_path)
    connection = sqlite3.connect(tmp_path / "glinthawk.db")
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 1_000)
    with (
        pytest.raises(InvalidRequest, match="larger than what the store holds"),
        translate_database_failures(),
    ):
        connection.execute("INSERT INTO counters VALUES (?, 1)", ("x" * 2_000,))
    connection.close()
    store.close()


READ_ONLY = """
import os
import sys
from pathlib import Path

from glinthawk.errors import StoreUnavailable
from glinthawk.gateway.store import revisions
from glinthawk.gateway.store.sql import open_store
from unit.gateway.store.factories import add_batch, add_file, make_result

root, user = Path(sys.argv[1]), int(sys.argv[2])
if os.getuid() == 0:
    os.setgroups([])
    os.setgid(user)
    os.setuid(user)
if not os.access(revisions._SCRIPTS / "env.py", os.R_OK):
    raise SystemExit("unreadable")


def refuse(call):
    try:
        call()
    except StoreUnavailable as error:
        assert f"cannot be written; make folder and volume writable for user {user}" in str(error)
    else:
        raise SystemExit("it was not refused")


def set_modes(folder_mode, file_mode):
    (root / "files").chmod(folder_mode)
    for path in root.iterdir():
        path.chmod(folder_mode if path.is_dir() else file_mode)
    root.chmod(folder_mode)


store = open_store(root)
batch = add_batch(store)
(root / "files").chmod(0o500)
refuse(lambda: add_file(store))
(root / "files").chmod(0o700)
file = add_file(store)
store.close()

set_modes(0o500, 0o400)
refuse(lambda: open_store(root))
set_modes(0o700, 0o600)
(root / "glinthawk.db").chmod(0o400)
store = open_store(root)
refuse(lambda: store.reserve_epochs(1))
set_modes(0o700, 0o600)
store.reserve_epochs(1)
assert [f.id for f in store.list_files(limit=9, newest_first=False)] == [
    batch.input_file_id, file.id
]
store.add_results({batch.id: [make_result(1)]})
store.close()
print("went on")
"""


def test_a_folder_that_is_read_only_refuses_until_it_is_writable() -> None:
    """In a process of its own, for root may write to anything."""
    user = 65_534 if os.geteuid() == 0 else os.geteuid()
    data_dir = Path(tempfile.mkdtemp())  # not below tmp_path, which only root may enter
    os.chown(data_dir, user, -1)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "HOME": "/"}
    try:
        done = subprocess.run(
            [sys.executable, "-B", "-c", READ_ONLY, str(data_dir), str(user)],
            capture_output=True,
            text=True,
            check=False,
            env=environment,
        )
    finally:
        shutil.rmtree(data_dir)
    if done.stderr == "unreadable\n":
        pytest.skip(f"user {user} may not read the source, and root may write to anything")
    assert done.stdout == "went on\n", done.stderr
