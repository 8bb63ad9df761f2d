"""Reading a process' memory: its arena is told apart from the rest."""

import os
import subprocess
import sys

import pytest

from glinthawk.bench.memory import MemoryBenchSettings, read_memory
from glinthawk.errors import InvalidConfig

MIB = 1 << 20
SLACK = 24 * MIB
"""Memory that the interpreter may take or give back between two looks."""

PROGRAM = """
import mmap, sys
arena = mmap.mmap(-1, 256 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
print("made", flush=True)
sys.stdin.readline()
for _ in range(64):
    arena.write(b"x" * (1 << 20))
print("written", flush=True)
sys.stdin.readline()
"""


def test_an_arena_that_fills_is_no_overhead() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdout.readline()
        before = read_memory(process.pid, 256 * MIB)
        process.stdin.write("\n")
        process.stdin.flush()
        process.stdout.readline()
        after = read_memory(process.pid, 256 * MIB)
    finally:
        process.kill()
        process.communicate()
    assert before.arena == 0
    assert after.arena == 64 * MIB
    assert after.resident - before.resident >= 60 * MIB
    assert abs(after.overhead - before.overhead) < SLACK
    assert 0 < before.page_tables < 8 * MIB


def test_a_process_that_is_over_is_no_number() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    with pytest.raises(OSError, match=str(process.pid)):
        read_memory(process.pid, MIB)


def test_a_process_without_an_arena_is_all_overhead() -> None:
    found = read_memory(os.getpid(), 1 << 50)
    assert found.arena == 0
    assert found.overhead >= found.resident > 0


@pytest.mark.parametrize("wrong", [{"stages": ()}, {"stages": (0,)}, {"tokens": 0}])
def test_wrong_settings_are_refused(wrong: dict[str, tuple[int, ...] | int]) -> None:
    with pytest.raises(InvalidConfig):
        MemoryBenchSettings(**wrong)  # type: ignore[arg-type]
