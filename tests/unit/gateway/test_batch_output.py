import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from glinthawk.errors import GlinthawkError, InvalidConfig
from glinthawk.gateway.batch_output import OutputFile
from glinthawk.gateway.bodies import build_line_ids, build_output_line
from glinthawk.gateway.sidecar import RunIdentity, read_sidecar, sidecar_path

IDENTITY = RunIdentity("input", "model", {"seed": 0, "dtype": "float32"})


def open_output(path: Path, identity: RunIdentity = IDENTITY, **options: Any) -> OutputFile:
    return OutputFile(path, identity, **({"clock": lambda: 0.0} | options))


def line_of(number: int, status_code: int = 200, digest: str = IDENTITY.digest) -> bytes:
    return build_output_line(build_line_ids(digest, number), f"id-{number}", status_code, {})


@contextmanager
def file_size_limit(num_bytes: int) -> Iterator[None]:
    """The system refuses what goes beyond, after writing what fits, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "out.jsonl"


def test_lines_are_in_the_file_at_once(path: Path) -> None:
    with open_output(path) as output:
        output.append([line_of(1), line_of(2)])
        assert path.read_bytes() == line_of(1) + line_of(2)


def test_a_second_start_goes_on(path: Path) -> None:
    with open_output(path) as output:
        assert (output.finished.line_numbers, output.epoch) == (frozenset(), 1)
        output.append([line_of(3), line_of(1, 400)])
    with open_output(path) as output:
        assert output.finished.line_numbers == {1, 3}
        assert output.finished.num_failed == 1
        assert output.epoch == 2
        output.append([line_of(2)])
    assert path.read_bytes() == line_of(3) + line_of(1, 400) + line_of(2)


@pytest.mark.parametrize("num_kept", [1, 20, -1])
def test_a_torn_last_line_is_mended(path: Path, num_kept: int) -> None:
    with open_output(path) as output:
        output.append([line_of(1)])
    with path.open("ab") as file:
        file.write(line_of(2)[:num_kept])
    with open_output(path) as output:
        assert output.finished.line_numbers == {1}
        output.append([line_of(2)])
    assert path.read_bytes() == line_of(1) + line_of(2)


def test_a_file_of_one_torn_line_begins_anew(path: Path) -> None:
    open_output(path).close()
    path.write_bytes(line_of(1)[:10])
    with open_output(path) as output:
        assert output.finished.line_numbers == frozenset()
    assert path.read_bytes() == b""


@pytest.mark.parametrize(
    ("identity", "words"),
    [
        (RunIdentity("other", "model", IDENTITY.parameters), "another input"),
        (RunIdentity("input", "other", IDENTITY.parameters), "another model"),
        (
            RunIdentity("input", "model", {"seed": 1, "dtype": "float32"}),
            r"another seed \(0, now 1",
        ),
        (RunIdentity("input", "model", {"seed": 0}), "another dtype"),
    ],
)
def test_an_output_of_another_run_is_refused_and_kept(
    path: Path, identity: RunIdentity, words: str
) -> None:
    with open_output(path) as output:
        output.append([line_of(1)])
    with pytest.raises(InvalidConfig, match=words):
        open_output(path, identity)
    assert path.read_bytes() == line_of(1)
    with open_output(path) as output:
        assert output.finished.line_numbers == {1}


def test_overwrite_begins_anew_and_goes_on_counting_epochs(path: Path) -> None:
    with open_output(path) as output:
        output.append([line_of(1)])
    other = RunIdentity("other", "model")
    with open_output(path, other, overwrite=True) as output:
        assert (output.finished.line_numbers, output.epoch) == (frozenset(), 2)
    assert path.read_bytes() == b""
    with open_output(path, other) as output:
        assert output.epoch == 3


def test_a_file_of_unknown_origin_is_refused(path: Path) -> None:
    path.write_bytes(b"precious\n")
    with pytest.raises(InvalidConfig, match="unknown run"):
        open_output(path)
    assert path.read_bytes() == b"precious\n"
    assert not sidecar_path(path).exists()


@pytest.mark.parametrize(
    "line",
    [
        b"nonsense\n", b"\n", b"[]\n", b"{}\n", b'{"id": 1, "response": {"status_code": 200}}\n',
        line_of(1, digest="f" * 64), line_of(1).replace(b"200", b"null"),
    ],
)  # fmt: skip
def test_a_line_that_is_no_answer_of_this_run_is_refused(path: Path, line: bytes) -> None:
    with open_output(path) as output:
        output.append([line_of(1)])
    with path.open("ab") as file:
        file.write(line)
    with pytest.raises(InvalidConfig, match="line 2 of output"):
        open_output(path)
    assert path.read_bytes() == line_of(1) + line


def test_an_empty_file_without_sidecar_is_taken(path: Path) -> None:
    path.touch()
    with open_output(path) as output:
        assert output.epoch == 1


def test_a_removed_output_begins_anew_whatever_the_sidecar_says(path: Path) -> None:
    open_output(path).close()
    path.unlink()
    with open_output(path, RunIdentity("other", "model")) as output:
        assert output.epoch == 2


def test_a_damaged_sidecar_is_refused_unless_overwritten(path: Path) -> None:
    with open_output(path) as output:
        output.append([line_of(1)])
    sidecar_path(path).write_text("{")
    with pytest.raises(InvalidConfig, match="damaged"):
        open_output(path)
    with open_output(path, overwrite=True) as output:
        assert output.epoch == 1


def test_two_commands_never_write_one_file(path: Path) -> None:
    with open_output(path):
        with pytest.raises(InvalidConfig, match="by another command"):
            open_output(path, overwrite=True)
        with pytest.raises(InvalidConfig, match="by another command"):
            open_output(path)
    open_output(path).close()


def test_a_child_process_does_not_keep_the_lock(path: Path) -> None:
    output = open_output(path)
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        output.close()
        open_output(path).close()
    finally:
        child.communicate(b"\n")


def test_an_epoch_is_stored_before_it_is_used(path: Path) -> None:
    with open_output(path) as output:
        assert output.reserve_epochs(1) == 2
        sidecar = read_sidecar(sidecar_path(path))
        assert sidecar is not None
        assert sidecar.epoch == 2
        assert sidecar.identity == IDENTITY


def test_a_full_disk_is_an_error_and_leaves_whole_lines(path: Path) -> None:
    with open_output(path) as output:
        output.append([line_of(1)])
        with (
            file_size_limit(len(line_of(1)) + 10),
            pytest.raises(GlinthawkError, match=r"writing output .* Free space"),
        ):
            output.append([line_of(2), line_of(3)])
        assert path.read_bytes() == line_of(1)
        output.append([line_of(4)])
    with open_output(path) as output:
        assert output.finished.line_numbers == {1, 4}


def test_half_a_line_that_cannot_be_cut_off_stops_all_writing(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(5, "Input/output error")

    with open_output(path) as output:
        with monkeypatch.context() as patch, file_size_limit(10):
            patch.setattr(os, "ftruncate", refuse)
            with pytest.raises(GlinthawkError, match="writing output"):
                output.append([line_of(1)])
        with pytest.raises(GlinthawkError, match="half a line"):
            output.append([line_of(1)])
    with open_output(path) as output:
        assert output.finished.line_numbers == frozenset()


def test_an_interrupted_write_leaves_whole_lines(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.write

    def interrupt(descriptor: int, data: bytes) -> int:
        write(descriptor, data[:5])
        raise KeyboardInterrupt

    with open_output(path) as output:
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", interrupt)
            with pytest.raises(KeyboardInterrupt):
                output.append([line_of(1)])
        assert path.read_bytes() == b""
        output.append([line_of(1)])
    assert path.read_bytes() == line_of(1)


def test_syncs_are_spaced(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 0.0
    synced: list[float] = []
    output = open_output(path, clock=lambda: now_s, fsync_every_s=5.0)
    monkeypatch.setattr(os, "fsync", lambda _: synced.append(now_s))
    for now_s in (1.0, 4.0, 5.0, 6.0, 11.0):
        output.append([line_of(int(now_s))])
    now_s = 12.0
    output.close()
    output.close()
    assert synced == [5.0, 11.0, 12.0]


def test_a_closed_file_takes_no_lines(path: Path) -> None:
    output = open_output(path)
    output.close()
    with pytest.raises(GlinthawkError, match="closed"):
        output.append([line_of(1)])


def test_what_cannot_be_a_file_is_refused(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(InvalidConfig, match="not a regular file"):
        open_output(pipe)
    for path in (tmp_path, tmp_path / "none" / "out"):
        with pytest.raises(InvalidConfig, match="cannot be opened"):
            open_output(path)


def test_a_killed_command_loses_no_line_that_it_wrote(path: Path) -> None:
    """Kill a writer at an arbitrary moment, again and again, until all lines are there."""
    program = f"""
import time
from pathlib import Path
from unit.gateway.test_batch_output import line_of, open_output
with open_output(Path({str(path)!r})) as output:
    print("open", flush=True)
    for number in range(1, 3001):
        if number not in output.finished.line_numbers:
            output.append([line_of(number)])
            time.sleep(0.0002)
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    num_kills = 0
    while True:
        with subprocess.Popen(
            [sys.executable, "-c", program], stdout=subprocess.PIPE, env=environment
        ) as child:
            assert child.stdout is not None
            assert child.stdout.readline() == b"open\n"
            try:
                child.wait(timeout=0.15 + 0.1 * num_kills)
                assert child.returncode == 0
                break
            except subprocess.TimeoutExpired:
                child.kill()
                num_kills += 1
    assert num_kills > 0
    numbers = [json.loads(line)["custom_id"] for line in path.read_text().splitlines()]
    assert sorted(numbers) == sorted(f"id-{number}" for number in range(1, 3001))
