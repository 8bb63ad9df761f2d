"""Opening a store: the lock, leftovers, releases that do not fit, and a backup that works."""

import os
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import text

from glinthawk.errors import InvalidConfig, NotFound, StoreUnavailable
from glinthawk.gateway.store import sql
from glinthawk.gateway.store.records import FilePurpose, KeyRecord
from glinthawk.gateway.store.sql import SqlStore, open_store
from unit.gateway.store.factories import add_batch, add_file, make_lines, make_result

OPEN_AND_WAIT = """
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from glinthawk.gateway.store.sql import open_store
store = open_store(Path(sys.argv[1]))
print("open", flush=True)
sys.stdin.read()
"""


def test_a_store_is_made_where_there_is_none_and_found_again(tmp_path: Path) -> None:
    place = tmp_path / "a b" / "100%s ü"
    store = open_store(place)
    file, batch = add_file(store, b"content"), add_batch(store)
    store.add_lines(batch.id, make_lines([1, 2]))
    store.add_results({batch.id: [make_result(2)]})
    epoch = store.reserve_epochs(1)
    store.close()

    again = open_store(place)
    assert again.get_file(file.id) == file
    assert again.get_batch(batch.id).counts.completed == 1
    assert [line.line_number for line in again.next_lines(batch.id, after=0, limit=9)] == [1]
    assert again.reserve_epochs(1) > epoch
    again.close()


def test_a_second_gateway_on_the_folder_is_refused_and_told_who_has_it(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    with pytest.raises(
        InvalidConfig, match=rf"in use by another gateway \(process {os.getpid()}\)"
    ):
        open_store(tmp_path)
    store.add_key(KeyRecord("key_1", "ci", "0" * 64, 1))
    store.close()
    open_store(tmp_path).close()


def test_the_lock_goes_with_a_killed_process(tmp_path: Path) -> None:
    command = [sys.executable, "-c", OPEN_AND_WAIT, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"open\n"
        with pytest.raises(InvalidConfig, match=f"process {child.pid}"):
            open_store(tmp_path)
        child.kill()
        child.wait()
        open_store(tmp_path).close()


def test_a_store_that_is_closed_says_so(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    batch = add_batch(store)
    store.close()
    store.close()
    for use in (lambda: store.get_batch(batch.id), lambda: store.reserve_epochs(1)):
        with pytest.raises(StoreUnavailable, match="closed"):
            use()
    with pytest.raises(StoreUnavailable, match="closed"):
        add_file(store)
    assert len(list((tmp_path / "files").iterdir())) == 1  # of the batch; none left behind


def test_leftovers_of_a_killed_process_are_removed_and_strangers_left(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    kept = add_file(store, b"kept")
    store.close()
    files = tmp_path / "files"
    half, unlisted = f"file-{'a' * 32}.part", f"file-{'b' * 32}"
    for name in (half, unlisted, "notes.txt"):
        (files / name).write_bytes(b"x")

    beside = open_store(tmp_path, beside_gateway=True)
    assert (files / half).exists()  # it may be another process's, at work
    beside.close()
    again = open_store(tmp_path)
    assert {path.name for path in files.iterdir()} == {kept.id, "notes.txt"}
    again.close()


def test_a_file_whose_content_was_lost_is_said_to_be_missing(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    file = add_file(store)
    store.file_path(file.id).unlink()
    with pytest.raises(NotFound, match="restore"):
        store.open_file(file.id)
    store.delete_file(file.id)
    assert store.list_files(limit=1) == []
    store.close()


# --- two processes


def test_a_command_beside_the_gateway_sees_and_changes_what_it_has(tmp_path: Path) -> None:
    gateway = open_store(tmp_path)
    gateway.add_key(KeyRecord("key_1", "ci", "0" * 64, 1))
    script = (
        "import sys; from pathlib import Path; from glinthawk.gateway.store.sql import open_store;"
        "store = open_store(Path(sys.argv[1]), beside_gateway=True);"
        "print([key.name for key in store.list_keys()]);"
        "store.revoke_key('ci', now=7); store.close()"
    )
    printed = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, check=True, text=True
    ).stdout
    assert printed == "['ci']\n"
    assert [key.revoked_at for key in gateway.list_keys()] == [7]
    gateway.add_key(KeyRecord("key_2", "ci", "1" * 64, 8))
    gateway.close()


def test_two_that_write_at_once_wait_for_each_other(tmp_path: Path) -> None:
    gateway = open_store(tmp_path)
    beside = open_store(tmp_path, beside_gateway=True)
    batch = add_batch(gateway)

    def raise_priority(store: SqlStore) -> None:
        for number in range(100):
            changed = store.update_batch(batch.id, only_from=[batch.status], priority=number)
            assert changed.priority == number

    with ThreadPoolExecutor(2) as threads:
        list(threads.map(raise_priority, [gateway, beside]))
    beside.close()
    gateway.close()


def test_a_command_may_come_before_the_first_gateway(tmp_path: Path) -> None:
    first = open_store(tmp_path / "data", beside_gateway=True)
    first.add_key(KeyRecord("key_1", "ci", "0" * 64, 1))
    gateway = open_store(tmp_path / "data")
    assert [key.name for key in gateway.list_keys()] == ["ci"]
    gateway.close()
    first.close()


# --- releases


def set_revision(data_dir: Path, revision: str) -> None:
    open_store(data_dir).close()
    with sqlite3.connect(data_dir / "glinthawk.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num = ?", [revision])
    connection.close()


@pytest.mark.parametrize("beside_gateway", [True, False])
def test_a_store_of_a_newer_release_is_refused_by_both_revisions(
    tmp_path: Path, beside_gateway: bool
) -> None:
    set_revision(tmp_path, "9999")
    for _ in range(2):  # a refusal holds no lock
        with pytest.raises(InvalidConfig, match=r"9999.*0005"):
            open_store(tmp_path, beside_gateway=beside_gateway)


# --- backup


def run_documented_backup(data_dir: Path, backup: Path) -> None:
    assert sql.__doc__ is not None
    _, _, behind = sql.__doc__.partition("    mkdir -p BACKUP\n")
    block, _, _ = behind.partition("\n\n")
    commands = f"mkdir -p BACKUP\n{block}".replace("python3", sys.executable)
    commands = commands.replace("DATA_DIR", str(data_dir)).replace("BACKUP", str(backup))
    subprocess.run(["sh", "-ec", commands], check=True)


def test_a_backup_taken_while_at_work_restores_the_whole_store(tmp_path: Path) -> None:
    store = open_store(tmp_path / "data")
    file, batch = add_file(store, b"content"), add_batch(store)
    store.add_lines(batch.id, make_lines([1, 2]))
    store.add_results({batch.id: [make_result(1)]})
    backup = tmp_path / "backup"
    run_documented_backup(tmp_path / "data", backup)
    store.add_results({batch.id: [make_result(2)]})
    store.close()

    restored = open_store(backup)
    assert restored.get_batch(batch.id).counts.completed == 1
    with restored.open_file(file.id) as content:
        assert content.read() == b"content"
    later = restored.add_file([b"x"], purpose=FilePurpose.BATCH_OUTPUT, filename="o.jsonl")
    assert {f.id for f in restored.list_files(limit=9)} >= {file.id, later.id}
    restored.close()


def test_commits_are_synced_to_disk_and_foreign_keys_held(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    with store._database.write() as connection:
        pragmas = {
            name: connection.execute(text(f"PRAGMA {name}")).scalar_one()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        }
    assert pragmas == {
        "journal_mode": "wal",
        "synchronous": 2,
        "foreign_keys": 1,
        "busy_timeout": 5_000,
    }
    store.close()


# --- threads


def test_many_threads_write_and_read_and_none_disturbs_another(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    batches = [add_batch(store).id for _ in range(3)]

    def work(thread: int) -> list[int]:
        seen = []
        for number in range(thread, 200, 8):
            answers = [make_result(number), make_result(number // 8, is_error=True)]
            store.add_results(dict.fromkeys(batches, answers))
            completed = store.get_batch(batches[0]).counts.completed
            assert completed <= len(list(store.iterate_results(batches[0], is_error=False)))
            store.add_file([b"x"], purpose=FilePurpose.BATCH, filename=str(number))
            seen.append(store.reserve_epochs(1))
        return seen

    with ThreadPoolExecutor(8) as threads:
        epochs = [epoch for seen in threads.map(work, range(8)) for epoch in seen]
    assert sorted(epochs) == list(range(1, 201))
    assert len(store.list_files(limit=1_000)) == 200 + len(batches)
    for batch_id in batches:
        counts = store.get_batch(batch_id).counts
        assert counts.completed + counts.failed == 200
        for is_error, count in ((False, counts.completed), (True, counts.failed)):
            assert len(list(store.iterate_results(batch_id, is_error=is_error))) == count
    store.close()
