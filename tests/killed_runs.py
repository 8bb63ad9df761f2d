"""A batch over real commands that are killed: `glinthawk up`, or the gateway alone.

The client's side and the comparison are those of the chaos benchmark; here are the processes of
`up`, and the proof that none of them is left.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from glinthawk.bench.chaos import ENDPOINT, ChaosBenchSettings, build_lines
from glinthawk.bench.client import ApiClient, Patient
from glinthawk.bench.fleet import Life, find_ports, wait_until

START_S = 180.0
STUCK_S = 180.0
GONE_S = 60.0


def make_lines(model: Path, num_requests: int, num_tokens: int) -> list[dict[str, Any]]:
    """Return greedy requests of many lengths."""
    return build_lines(
        ChaosBenchSettings(requests=num_requests, tokens=num_tokens, model=str(model))
    )


class Up:
    """`glinthawk up` on ports and a data folder that it keeps across its lives."""

    def __init__(self, model: Path, folder: Path, *options: str) -> None:
        self._folder = folder
        http, listen, control = find_ports(3)
        self._arguments = [
            *("up", "--model", str(model), "--dtype", "float32", "--threads", "1"),
            *("--port", str(http), "--listen", f"127.0.0.1:{listen}"),
            *("--control-port", str(control), "--data-dir", str(folder / "data")),
            *("--log-format", "json", *options),
        ]
        self.url = f"http://127.0.0.1:{http}"
        self.patient = Patient(ApiClient(http), START_S)
        self.control = ApiClient(control)
        self._life: Life | None = None
        self._seen: dict[int, psutil.Process] = {}

    @property
    def processes(self) -> list[psutil.Process]:
        """The command and what it has started."""
        assert self._life is not None, "start comes first"
        command = psutil.Process(self._life.pid)
        return [command, *command.children(recursive=True)]

    def start(self) -> None:
        """Start it; return at once."""
        self._life = Life("up", self._arguments, self._folder / "up.log")

    def wait_until_ready(self) -> None:
        """Wait until a token can be generated."""
        wait_until(self.patient.client.is_ready, "ready", START_S)

    def kill(self) -> None:
        """End the command as the kernel's out-of-memory killer does; its children must follow."""
        self._note()
        assert self._life is not None
        self._life.kill()

    def stop(self) -> bool:
        """Ask it to end; return whether it did in time."""
        self._note()
        assert self._life is not None
        return self._life.terminate()

    def _note(self) -> None:
        self._seen |= {process.pid: process for process in self.processes}

    def wait_until_nothing_is_left(self) -> None:
        """Wait until no process that this command has started is there."""
        _, alive = psutil.wait_procs(list(self._seen.values()), timeout=GONE_S)
        assert not alive, f"left over: {alive}"

    def close(self) -> None:
        """End whatever is there."""
        if self._life is not None and not self._life.is_over:
            self._note()
            self._life.kill()
        for process in self._seen.values():
            if process.is_running():
                process.kill()


@contextmanager
def up(model: Path, folder: Path, *options: str) -> Iterator[Up]:
    """Yield the command, not yet started."""
    folder.mkdir(parents=True, exist_ok=True)
    command = Up(model, folder, *options)
    try:
        yield command
    finally:
        command.close()


def create_batch(patient: Patient, lines: list[dict[str, Any]], label: str) -> str:
    """Give the lines as a batch; return its id."""
    content = "".join(json.dumps(line) + "\n" for line in lines).encode()
    return patient.create_batch_once(content, ENDPOINT, label)


def read_batch(patient: Patient, batch_id: str) -> list[dict[str, Any]]:
    """Wait for a batch to complete, and return the lines of its output and error files."""
    batch = patient.wait_for_batch(batch_id, stuck_s=STUCK_S)
    assert batch["status"] == "completed", batch
    return patient.read_results(batch)
