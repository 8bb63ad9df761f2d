"""A gateway, stages and attention workers as real processes, struck and started again by name.

    Fleet --start, kill, freeze, terminate--> gateway <--register-- stages, workers
      '-- the API and the control API, on ports that stay the gateway's across its lives

It knows processes and how they end, not what they work at.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from glinthawk.bench.client import ApiClient
from glinthawk.bench.disturbances import Crew
from glinthawk.errors import GlinthawkError
from glinthawk.gateway.launcher import build_environment

GATEWAY = "gateway"
START_S = 120.0
END_S = 30.0
"""How long a process that was asked to end may take."""

LOOK_EVERY_S = 0.05
_TAIL_LINES = 15


class FleetFailed(GlinthawkError):
    """A process did not come up, or ended by itself."""


@dataclass(frozen=True)
class FleetSettings:
    """What the fleet is made of. folder: for the gateway's data and everybody's log.

    kv_memory: of each worker, such as 8MiB. gateway_options: further ones of the command.
    """

    model: str
    folder: Path
    num_stages: int
    num_workers: int
    kv_memory: str
    dtype: str = "float32"
    gateway_options: tuple[str, ...] = ()


def find_ports(num_ports: int) -> list[int]:
    """Return ports that are free now, all different."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(num_ports)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def wait_until(is_true: Callable[[], bool], what: str, deadline_s: float) -> None:
    """Wait until something is true.

    Raises:
        FleetFailed: the time is over; the message says what did not come true.
    """
    deadline = time.monotonic() + deadline_s
    while not is_true():
        if time.monotonic() >= deadline:
            raise FleetFailed(f"{what}: not within {deadline_s:g} s")
        time.sleep(LOOK_EVERY_S)


class Life:
    """One process, from its start to its end. Its output is added to a file."""

    def __init__(self, name: str, arguments: list[str], log: Path) -> None:
        self.name = name
        self._log = log
        with log.open("ab") as output:
            self._popen = subprocess.Popen(
                [sys.executable, "-m", "glinthawk", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=build_environment(os.environ, threads=1),
            )

    @property
    def pid(self) -> int:
        """Id of the process."""
        return self._popen.pid

    @property
    def is_over(self) -> bool:
        """Whether it has ended."""
        return self._popen.poll() is not None

    def kill(self) -> None:
        """End it as a power failure does."""
        self._popen.kill()
        self._popen.wait()

    def freeze(self) -> None:
        """Stop it without ending it."""
        self._popen.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on as if nothing had been."""
        self._popen.send_signal(signal.SIGCONT)

    def terminate(self) -> bool:
        """Ask it to end, and return whether it did in time; it is killed if it did not."""
        self.ask_to_end()
        return self.wait_for_end()

    def ask_to_end(self) -> None:
        """Ask it to end, and do not wait."""
        self._popen.terminate()

    def wait_for_end(self, within_s: float = END_S) -> bool:
        """Return whether it ended in time; it is killed if it did not."""
        try:
            self._popen.wait(within_s)
        except subprocess.TimeoutExpired:
            self.kill()
            return False
        return True

    def describe_end(self) -> str:
        """Say how it ended and what it said last."""
        lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()
        said = "".join(f"\n    {line}" for line in lines[-_TAIL_LINES:])
        return f"{self.name} ended with {self._popen.poll()}; its last lines:{said}"


class Fleet:
    """The processes of one deployment. One thread starts and strikes them.

    http_port: of the API. hung: names of the processes that were asked to end and did not. ended:
    what those said that ended by themselves.
    """

    def __init__(self, settings: FleetSettings) -> None:
        self._settings = settings
        self._lives: dict[str, Life] = {}
        self._stage_names: list[str] = []
        self._draining: set[str] = set()
        self._num_joined = 0
        self.http_port, self._listen, control = find_ports(3)
        self._ports = {"--port": str(self.http_port), "--control-port": str(control)}
        self.api = ApiClient(self.http_port)
        self.control = ApiClient(control)
        self.hung: list[str] = []
        self.ended: list[str] = []
        settings.folder.mkdir(parents=True, exist_ok=True)

    @property
    def gateway_address(self) -> str:
        """Where members register."""
        return f"127.0.0.1:{self._listen}"

    def start(self) -> None:
        """Start everything, and wait until tokens can be generated on every worker.

        Raises:
            FleetFailed: a process ended, or they take too long.
        """
        settings = self._settings
        self._stage_names = [f"stage-{index}" for index in range(settings.num_stages)]
        self.begin_gateway()
        for name in self._stage_names:
            self.begin_stage(name)
        for _ in range(settings.num_workers):
            self.join_worker()
        wait_until(self._is_whole, "the gateway, all stages and all workers are there", START_S)

    def begin_gateway(self) -> None:
        """Start the gateway, on the data of the one before it."""
        settings = self._settings
        self._draining.clear()
        options = {
            "--model": settings.model,
            "--stages": str(settings.num_stages),
            "--data-dir": str(settings.folder / "data"),
            "--listen": self.gateway_address,
            "--log-format": "json",
            **self._ports,
        }
        self._begin(GATEWAY, "gateway", options, *settings.gateway_options)

    def begin_stage(self, name: str) -> None:
        """Start the stage of a name, for the layers of that name."""
        settings = self._settings
        options = {
            "--model": settings.model,
            "--dtype": settings.dtype,
            "--device": "cpu",
            "--stage": str(self._stage_names.index(name)),
            "--num-stages": str(settings.num_stages),
        }
        self._begin(name, "stage", options | self._member_options(name))

    def join_worker(self) -> None:
        """Start a worker that was never there."""
        name = f"worker-{self._num_joined}"
        self._num_joined += 1
        options = {"--kv-memory": self._settings.kv_memory}
        self._begin(name, "attention", options | self._member_options(name))

    def life(self, name: str) -> Life:
        """Return a process that runs."""
        return self._lives[name]

    def remove(self, name: str) -> None:
        """Forget a process that has ended, or is about to."""
        del self._lives[name]
        self._draining.discard(name)

    def note_drain(self, worker: str, *, is_draining: bool) -> None:
        """Remember that a drain began, or was taken back."""
        (self._draining.add if is_draining else self._draining.discard)(worker)

    def crew(self) -> Crew:
        """Return who is there, in a fixed order."""
        workers = [name for name in self._lives if name.startswith("worker-")]
        return Crew(
            stages=tuple(self._stage_names),
            workers=tuple(name for name in workers if name not in self._draining),
            draining=tuple(name for name in workers if name in self._draining),
            most_workers=self._settings.num_workers,
        )

    def revive(self) -> None:
        """Start again what ended by itself, as whoever runs such processes does; note why."""
        for name, life in list(self._lives.items()):
            if not life.is_over:
                continue
            self.ended.append(life.describe_end())
            self.remove(name)
            if name == GATEWAY:
                self.begin_gateway()
            elif name in self._stage_names:
                self.begin_stage(name)
            else:
                self.join_worker()

    def terminate(self, life: Life) -> None:
        """Ask a process to end, and see to it that it does; note if it did not in time."""
        if not life.terminate():
            self.hung.append(life.name)

    def stop(self) -> None:
        """End everything: members first, so that the gateway sees them leave. None is left."""
        lives = sorted(self._lives.values(), key=lambda life: life.name == GATEWAY)
        self._lives.clear()
        for life in lives:
            life.thaw()
            life.ask_to_end()
        self.hung += [life.name for life in lives if not life.wait_for_end()]

    def kill_all(self) -> None:
        """End everything at once, whatever state it is in."""
        for life in self._lives.values():
            life.kill()
        self._lives.clear()

    def _begin(self, name: str, command: str, options: dict[str, str], *more: str) -> None:
        arguments = [command, *(text for pair in options.items() for text in pair), *more]
        log = self._settings.folder / f"{name}.log"
        self._lives[name] = Life(name, arguments, log)

    def _member_options(self, name: str) -> dict[str, str]:
        options = {"--name": name, "--gateway": self.gateway_address}
        return {**options, "--threads": "1", "--log-format": "json"}

    def _is_whole(self) -> bool:
        for life in self._lives.values():
            if life.is_over:
                raise FleetFailed(life.describe_end())
        if not self.api.is_ready():
            return False
        workers = self.control.inspect()["workers"]
        active = [worker for worker in workers if worker["state"] == "active"]
        return len(active) == self._settings.num_workers


@contextmanager
def fleet_of(settings: FleetSettings) -> Iterator[Fleet]:
    """Yield a fleet that works; nothing of it is left afterwards.

    Raises:
        FleetFailed: a process ended, or they take too long to come up.
    """
    fleet = Fleet(settings)
    try:
        fleet.start()
        yield fleet
        fleet.stop()
    finally:
        fleet.kill_all()
