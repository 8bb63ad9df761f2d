"""What a batch file's size costs a gateway in memory: nothing, up to a million lines and beyond.

Real processes of this machine, new ones for each size: a gateway, a stage, one worker.

    file --upload--> validated, by a process --> fed, until some are answered --> cancelled
        --> each other line gets its error line --> both files, read to their end

Peaks are the kernel's (VmHWM): of the gateway from when it is ready, and of the process that
validates from its start. Every line must end in exactly one of the two files.
"""

import json
import re
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from glinthawk.bench.client import Patient
from glinthawk.bench.environment import describe_environment
from glinthawk.bench.fleet import GATEWAY, Fleet, FleetFailed, FleetSettings, fleet_of, wait_until
from glinthawk.errors import InvalidConfig
from glinthawk.gateway.batch_client import BatchClient
from glinthawk.gateway.remote_lines import split_pieces
from glinthawk.models.source import DEFAULT_MODEL

ENDPOINT = "/v1/completions"
MOST_GROWTH_MIB = 64.0
"""By so much more than for the smallest file a peak may be."""

PHASE_S = 3600.0
PATIENCE_S = 60.0
_LOOK_EVERY_S = 0.02
_VALIDATES = b"glinthawk.gateway.jobs.validate"
_PEAK = re.compile(r"^VmHWM:\s+(\d+) kB", re.MULTILINE)
_RESET_PEAK = "5"
_MIB = 1 << 20


@dataclass(frozen=True)
class JobBenchSettings:
    """lines: of each file, the smallest first. answered: lines after which a batch is cancelled.

    tokens: of each answer; few, for it is the lines that count.
    """

    lines: tuple[int, ...] = (10_000, 1_000_000)
    answered: int = 2000
    tokens: int = 1
    model: str = DEFAULT_MODEL

    def __post_init__(self) -> None:
        if list(self.lines) != sorted(set(self.lines)) or len(self.lines) < 2:
            raise InvalidConfig(f"lines {self.lines}: give two sizes or more, the smallest first")
        if not 1 <= self.answered <= self.lines[0] or self.tokens < 1:
            raise InvalidConfig(
                f"answered is {self.answered} and tokens {self.tokens}: tokens must be at least 1, "
                f"answered from 1 to the lines of the smallest file, {self.lines[0]}"
            )


@dataclass
class _Peaks:
    """Peak resident bytes. validation: 0 while no process has validated."""

    gateway_at_rest: int
    gateway: int = 0
    validation: int = 0


def run_job_bench(settings: JobBenchSettings) -> dict[str, Any]:
    """Measure, and return environment, settings, samples and goals as JSON can hold them.

    Raises:
        InvalidConfig: a setting is wrong, or the model is not there.
        FleetFailed: a process does not come up, or a batch does not end as it should.
    """
    samples = [_measure(settings, num_lines) for num_lines in settings.lines]
    grown = {
        process: max(
            sample[f"{process}_peak"] - samples[0][f"{process}_peak"] for sample in samples
        )
        for process in ("gateway", "validation")
    }
    limits = {
        **{
            f"{name}: peak grown, MiB": (size / _MIB, MOST_GROWTH_MIB)
            for name, size in grown.items()
        },
        **{
            f"lines {fate}": (sum(one[fate] for one in samples), 0.0)
            for fate in ("lost", "doubled")
        },
    }
    return {
        "benchmark": "job",
        "environment": describe_environment("fastapi", "uvicorn", "sqlalchemy"),
        "settings": asdict(settings),
        "samples": samples,
        "goals": [
            {"name": name, "value": value, "goal": goal, "at_most": True, "holds": value <= goal}
            for name, (value, goal) in limits.items()
        ],
    }


def _measure(settings: JobBenchSettings, num_lines: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="glinthawk-job-") as name:
        source = Path(name) / "input.jsonl"
        write_input(source, num_lines, settings.tokens)
        fleet_settings = FleetSettings(settings.model, Path(name) / "fleet", 1, 1, "64MiB")
        with fleet_of(fleet_settings) as fleet, _watch(fleet.life(GATEWAY).pid) as peaks:
            run = _run(fleet, source, num_lines, settings.answered)
        return {
            "lines": num_lines,
            "input_bytes": source.stat().st_size,
            **run,
            "gateway_at_rest": peaks.gateway_at_rest,
            "gateway_peak": peaks.gateway,
            "validation_peak": peaks.validation,
        }


def write_input(path: Path, num_lines: int, num_tokens: int) -> None:
    """Write a batch file whose custom_ids are `line-0` and so on."""
    with path.open("w", encoding="utf-8") as file:
        for number in range(num_lines):
            body = {"prompt": [5 + number % 290, 7], "max_tokens": num_tokens, "temperature": 0}
            line = {"custom_id": f"line-{number}", "method": "POST", "url": ENDPOINT, "body": body}
            file.write(json.dumps(line) + "\n")


def _run(fleet: Fleet, source: Path, num_lines: int, num_answered: int) -> dict[str, Any]:
    """Run a batch until so many lines are answered, cancel it, and read its files."""
    patient = Patient(fleet.api, PATIENCE_S)
    url = f"http://127.0.0.1:{fleet.http_port}"
    with BatchClient(url, api_key=None, patience_s=PATIENCE_S) as client:
        began = time.monotonic()
        file_id = client.upload(source)
        uploaded = time.monotonic()
        body = {"input_file_id": file_id, "endpoint": ENDPOINT, "completion_window": "24h"}
        batch_id = str(client.create_batch(body, "job")["id"])
        find = partial(patient.ask, partial(fleet.api.batch, batch_id))
        wait_until(lambda: find()["status"] != "validating", "the batch is validated", PHASE_S)
        validated = time.monotonic()
        wait_until(
            lambda: find()["request_counts"]["completed"] >= num_answered,
            f"{num_answered} lines are answered",
            PHASE_S,
        )
        answered = time.monotonic()
        patient.ask(partial(fleet.api.cancel_batch, batch_id))
        wait_until(lambda: find()["status"] == "cancelled", "the batch is cancelled", PHASE_S)
        ended = time.monotonic()
        batch = find()
        counts = batch["request_counts"]
        if counts["total"] != num_lines:
            raise FleetFailed(f"a batch of {num_lines} lines ended with the counts {counts}")
        seen = bytearray(num_lines)
        for name in ("output_file_id", "error_file_id"):
            if batch[name] is not None:
                _count_lines(client, batch[name], seen)
    return {
        "upload_s": uploaded - began,
        "validation_s": validated - uploaded,
        "answering_s": answered - validated,
        "cancelling_s": ended - answered,
        "reading_s": time.monotonic() - ended,
        "answered": counts["completed"],
        "lost": seen.count(0),
        "doubled": num_lines - seen.count(0) - seen.count(1),
    }


def _count_lines(client: BatchClient, file_id: str, seen: bytearray) -> None:
    """Count, by the number in its custom_id, each line of a file; 255 is the most."""
    with client.open_file(file_id) as pieces:
        for line in split_pieces(pieces):
            number = int(json.loads(line)["custom_id"].removeprefix("line-"))
            seen[number] = min(seen[number] + 1, 255)


# --- what it takes


def read_peak(pid: int) -> int:
    """Return a process' peak resident bytes.

    Raises:
        OSError: it is over, or this system has no /proc.
    """
    found = _PEAK.search(Path("/proc", str(pid), "status").read_text(encoding="utf-8"))
    return int(found[1]) << 10 if found else 0


def find_children(pid: int) -> list[int]:
    """Return the processes that a process has started, by whatever thread."""
    lists = Path("/proc", str(pid), "task").glob("*/children")
    return [int(child) for one in lists for child in one.read_text(encoding="ascii").split()]


@contextmanager
def _watch(pid: int) -> Iterator[_Peaks]:
    """Note the peaks of a gateway and of what validates for it, until the end of the block."""
    Path("/proc", str(pid), "clear_refs").write_text(_RESET_PEAK, encoding="ascii")
    peaks = _Peaks(read_peak(pid))
    is_over = threading.Event()

    def look() -> None:
        while not is_over.wait(_LOOK_EVERY_S):
            with suppress(OSError):  # one of them has ended meanwhile
                for child in find_children(pid):
                    if _VALIDATES in Path("/proc", str(child), "cmdline").read_bytes():
                        peaks.validation = max(peaks.validation, read_peak(child))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield peaks
        peaks.gateway = read_peak(pid)
    finally:
        is_over.set()
        thread.join()
