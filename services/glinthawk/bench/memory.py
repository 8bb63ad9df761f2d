"""What an attention worker takes beside its KV arena: what `memoryOverhead` must cover.

Real processes of this machine: a gateway, stages, one worker. Its memory is read while it holds
nothing, and over and over while sequences fill its arena: many short ones, and a prompt that
comes in chunks.

    overhead = resident memory - resident part of the arena + page tables

Resident memory counts the program and its libraries in full, though a node keeps those once.
"""

import re
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from glinthawk.bench.client import ApiClient
from glinthawk.bench.environment import describe_environment
from glinthawk.bench.fleet import Fleet, FleetSettings, fleet_of
from glinthawk.config import parse_size
from glinthawk.core.dtype import DType
from glinthawk.errors import GlinthawkError, InvalidConfig
from glinthawk.models.load import load_config
from glinthawk.models.source import DEFAULT_MODEL, resolve_model

WORKER = "worker-0"
ENDPOINT = "/v1/completions"
SETTLE_S = 2.0
LOOK_EVERY_S = 0.2
FILL = 0.9
"""Share of the arena that sequences are to fill."""

_PAGE_TABLES = re.compile(r"^VmPTE:\s+(\d+) kB", re.MULTILINE)
_MAPPING = re.compile(r"^[0-9a-f]+-[0-9a-f]+ ")
_FIRST_ID, _NUM_IDS = 5, 300


@dataclass(frozen=True)
class MemoryBenchSettings:
    """What is measured: each number of stages with each size of the arena.

    prompt, tokens: of a short sequence. long_prompt: of the one that comes in chunks.
    """

    stages: tuple[int, ...] = (1, 4)
    kv_memories: tuple[str, ...] = ("128MiB", "1GiB")
    prompt: int = 256
    tokens: int = 64
    long_prompt: int = 2048
    model: str = DEFAULT_MODEL
    dtype: str = "bfloat16"

    def __post_init__(self) -> None:
        if not self.stages or min(self.stages) < 1 or not self.kv_memories:
            raise InvalidConfig(
                f"stages {self.stages} and kv_memories {self.kv_memories}: give at least one of "
                "each, and stages from 1"
            )
        if min(self.prompt, self.tokens, self.long_prompt) < 1:
            raise InvalidConfig("prompt, tokens and long_prompt must be at least 1")


@dataclass(frozen=True)
class ProcessMemory:
    """Bytes of a process: resident, of its arena among them, and of its page tables."""

    resident: int
    arena: int
    page_tables: int

    @property
    def overhead(self) -> int:
        """What it takes beside its arena."""
        return self.resident - self.arena + self.page_tables


def read_memory(pid: int, arena_bytes: int) -> ProcessMemory:
    """Return a process' memory. arena_bytes: size of its arena, which is its largest mapping.

    Raises:
        OSError: it is over, or this system has no /proc.
    """
    folder = Path("/proc", str(pid))
    found = _PAGE_TABLES.search((folder / "status").read_text(encoding="utf-8"))
    page_tables = int(found[1]) << 10 if found else 0
    resident, largest, arena = 0, 0, 0
    size = 0
    for line in (folder / "smaps").read_text(encoding="utf-8").splitlines():
        if _MAPPING.match(line):
            continue
        name, _, value = line.partition(":")
        if name == "Size":
            size = _kib(value)
        elif name == "Rss":
            resident += _kib(value)
            if size > largest and size >= arena_bytes * 0.95:
                largest, arena = size, _kib(value)
    return ProcessMemory(resident, arena, page_tables)


def run_memory_bench(settings: MemoryBenchSettings) -> dict[str, Any]:
    """Measure, and return environment, settings and samples as JSON can hold them.

    Raises:
        InvalidConfig: a setting is wrong, or the model is not there.
        FleetFailed: a process does not come up, or ended.
    """
    samples = [
        _measure(settings, num_stages, kv_memory)
        for num_stages in settings.stages
        for kv_memory in settings.kv_memories
    ]
    return {
        "benchmark": "memory",
        "environment": describe_environment("numpy", "grpcio"),
        "settings": asdict(settings),
        "samples": samples,
        "goals": [],
    }


def _measure(settings: MemoryBenchSettings, num_stages: int, kv_memory: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="glinthawk-memory-") as folder:
        fleet_settings = FleetSettings(
            settings.model,
            Path(folder),
            num_stages=num_stages,
            num_workers=1,
            kv_memory=kv_memory,
            dtype=settings.dtype,
            gateway_options=("--max-key-tokens", str(1 << 30)),
        )
        with fleet_of(fleet_settings) as fleet:
            return {
                "stages": num_stages,
                "kv_memory": kv_memory,
                **_fill(fleet, settings, parse_size(kv_memory)),
            }


def _fill(fleet: Fleet, settings: MemoryBenchSettings, kv_bytes: int) -> dict[str, Any]:
    """Fill the worker's arena once; return what it took at rest and at most."""
    pid = fleet.life(WORKER).pid
    time.sleep(SETTLE_S)
    at_rest = read_memory(pid, kv_bytes)
    prompts = _prompts(settings, kv_bytes)
    with _watch(fleet, pid, kv_bytes) as seen:
        _generate(fleet.api, settings, prompts)
    most = max(seen, key=lambda one: one.overhead)
    after = read_memory(pid, kv_bytes)
    return {
        "sequences": len(prompts),
        "kv_resident": max(one.arena for one in seen),
        "overhead_at_rest": at_rest.overhead,
        "overhead_most": most.overhead,
        "overhead_after": after.overhead,
        "page_tables": max(one.page_tables for one in seen),
        "looks": len(seen),
    }


def _prompts(settings: MemoryBenchSettings, kv_bytes: int) -> list[int]:
    """Return lengths of prompts whose sequences fill the arena, the long one first if it fits."""
    model = load_config(resolve_model(settings.model))
    token_bytes = model.kv_geometry(DType.parse(settings.dtype)).token_bytes
    left = int(FILL * kv_bytes / token_bytes)
    prompts = []
    if settings.long_prompt + settings.tokens <= left:
        prompts.append(settings.long_prompt)
        left -= settings.long_prompt + settings.tokens
    prompts += [settings.prompt] * (left // (settings.prompt + settings.tokens))
    if not prompts:
        raise InvalidConfig(
            f"an arena of {kv_bytes} bytes holds no sequence of {settings.prompt} + "
            f"{settings.tokens} tokens of {token_bytes} bytes: make it larger"
        )
    return prompts


def _generate(api: ApiClient, settings: MemoryBenchSettings, prompts: list[int]) -> None:
    """Run a sequence for each prompt, all at once, to its end.

    Raises:
        GlinthawkError: one of them failed.
    """
    errors: list[GlinthawkError] = []

    def run(number: int, length: int) -> None:
        body = {
            "model": settings.model,
            "prompt": [_FIRST_ID + (number * 31 + at) % _NUM_IDS for at in range(length)],
            "max_tokens": settings.tokens,
            "temperature": 0,
            "ignore_eos": True,
        }
        try:
            api.stream(ENDPOINT, body)
        except GlinthawkError as error:
            errors.append(error)

    threads = [
        threading.Thread(target=run, args=(number, length)) for number, length in enumerate(prompts)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


@contextmanager
def _watch(fleet: Fleet, pid: int, kv_bytes: int) -> Iterator[list[ProcessMemory]]:
    """Read a process' memory over and over until the end of the block."""
    seen = [read_memory(pid, kv_bytes)]
    is_over = threading.Event()

    def look() -> None:
        while not is_over.wait(LOOK_EVERY_S):
            seen.append(read_memory(pid, kv_bytes))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        is_over.set()
        thread.join()


def _kib(text: str) -> int:
    return int(text.split()[0]) << 10
