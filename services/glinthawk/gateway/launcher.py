"""Starts stages and attention workers on this machine and takes them down again."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import IO

from glinthawk.config import ENVIRONMENT_PREFIX, BatchConfig, PeerConfig, UpConfig, count_cores
from glinthawk.config.compute import COMPUTE_ENVIRONMENT
from glinthawk.errors import InvalidConfig, PeerUnavailable
from glinthawk.telemetry.logging import get_logger
from glinthawk.telemetry.parent import PARENT_VARIABLE

log = get_logger("gateway.launcher")

EXIT_USAGE = 2
"""Exit code of a process that was started wrongly."""

STOP_GRACE_S = 5.0

REVIVE_AFTER_S = 1.0
REVIVE_AT_MOST_S = 30.0
"""Pause before a process that ended is started again: doubled each time, up to the second."""

STEADY_S = 60.0
"""A process that lived so long is started again without delay."""

_TAIL_LINES = 20


@dataclass(frozen=True)
class ThreadShares:
    """Threads of each stage and of each attention worker."""

    stage: int
    attention: int


def share_threads(
    text: str | None, *, num_cores: int, num_stages: int, num_workers: int
) -> ThreadShares:
    """Return the threads of each process.

    text: a number for each role, or ``stage=2,attention=1``. None shares out the cores within
    each role: each role as a whole may use all of them, for stages and workers wait for each
    other much of the time, and threads that wait do not spin.

    Raises:
        InvalidConfig: the text is none of these.
    """
    shares = {
        "stage": max(1, num_cores // num_stages),
        "attention": max(1, num_cores // num_workers),
    }
    if text is None:
        return ThreadShares(**shares)
    for part in text.split(","):
        role, separator, count = part.strip().rpartition("=")
        if not count.isdecimal() or int(count) < 1 or (separator and role not in shares):
            raise InvalidConfig(
                f"--threads {text!r}: write a number from 1 on, or stage=2,attention=1"
            )
        for name in [role] if separator else list(shares):
            shares[name] = int(count)
    return ThreadShares(**shares)


class _Child:
    """A process, and the last lines that it wrote."""

    def __init__(self, name: str, command: list[str], environment: dict[str, str]) -> None:
        self.name = name
        self.command = command
        self.environment = environment
        self.started_at = time.monotonic()
        self.ended_at: float | None = None
        self.pause_s = 0.0
        self.tail: deque[str] = deque(maxlen=_TAIL_LINES)
        self.process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        assert self.process.stderr is not None
        self._reader = threading.Thread(
            target=self._read, args=(self.process.stderr,), name=f"stderr-{name}", daemon=True
        )
        self._reader.start()

    def describe_end(self) -> str:
        """Say how it ended and what it said last."""
        said = "".join(f"\n    {line}" for line in self.last_lines())
        return self.how_ended() + (f"; its last lines:{said}" if said else "")

    def how_ended(self) -> str:
        """Say how it ended, on one line."""
        code = self.process.returncode
        if code >= 0:
            return f"{self.name} ended with exit code {code}"
        return f"{self.name} was killed by {_signal_name(-code)}"

    def last_lines(self) -> tuple[str, ...]:
        """Return what it said last."""
        self._reader.join(1.0)
        return tuple(self.tail)

    def _read(self, stream: IO[bytes]) -> None:
        with stream:
            for line in stream:
                self.tail.append(line.decode("utf-8", "replace").rstrip())


def build_environment(environment: Mapping[str, str], *, threads: int) -> dict[str, str]:
    """Return the environment of a process that computes with `threads` threads.

    Settings for all processes (`GLINTHAWK_<FIELD>`) were read by the command already, and a port
    among them cannot be everybody's; those for one role (`GLINTHAWK_STAGE_<FIELD>`) stay.
    """
    fields = {*BatchConfig.model_fields, *UpConfig.model_fields, *PeerConfig.model_fields}
    taken = {ENVIRONMENT_PREFIX + field.upper() for field in fields}
    kept = {name: value for name, value in environment.items() if name not in taken}
    own = {"OMP_NUM_THREADS": str(threads), PARENT_VARIABLE: str(os.getpid())}
    return {**kept, **COMPUTE_ENVIRONMENT, **own}


class Launcher:
    """The local processes of one gateway or batch run.

    One that ended by itself is an error of a batch run (`check`), and is started again under a
    gateway that stays (`revive`).
    """

    def __init__(self, config: BatchConfig | UpConfig, *, gateway_address: str) -> None:
        self._config = config
        self._gateway_address = gateway_address
        self._shares = share_threads(
            config.threads,
            num_cores=count_cores(),
            num_stages=config.stages,
            num_workers=config.attention_workers,
        )
        self._children: list[_Child] = []

    def start(self) -> None:
        """Start all processes; they register with the gateway by themselves."""
        config, shares = self._config, self._shares
        for index in range(config.attention_workers):
            self._spawn(
                "attention",
                f"attention-{index}",
                shares.attention,
                {"--kv-memory": str(config.kv_memory)},
            )
        for index in range(config.stages):
            options = {
                "--model": config.model,
                "--stage": str(index),
                "--num-stages": str(config.stages),
                "--device": config.device,
                "--dtype": config.dtype,
            }
            if config.revision is not None:
                options["--revision"] = config.revision
            self._spawn("stage", f"stage-{index}", shares.stage, options)

    def check(self) -> None:
        """Look whether all processes are alive.

        Raises:
            InvalidConfig: one was not content with its configuration, which is ours.
            PeerUnavailable: one ended; the message has its name, how, and its last lines.
        """
        for child in self._children:
            code = child.process.poll()
            if code == EXIT_USAGE:
                raise InvalidConfig(child.describe_end())
            if code is not None:
                raise PeerUnavailable(child.describe_end())

    def revive(self) -> None:
        """Start processes again that ended, each after a pause that grows while it does not
        live long. Call it often.

        Raises:
            InvalidConfig: one was not content with its configuration; it would end again.
        """
        now = time.monotonic()
        for index, child in enumerate(self._children):
            code = child.process.poll()
            if code is None:
                continue
            if code == EXIT_USAGE:
                raise InvalidConfig(child.describe_end())
            if child.ended_at is None:
                child.ended_at = now
                lived_long = now - child.started_at >= STEADY_S
                pause_s = 0.0 if lived_long else max(REVIVE_AFTER_S, 2 * child.pause_s)
                child.pause_s = min(pause_s, REVIVE_AT_MOST_S)
                log.warning("process_ended", reason=child.how_ended(), again_s=child.pause_s)
                for line in child.last_lines():
                    log.warning("process_said", name=child.name, line=line)
            if now - child.ended_at >= child.pause_s:
                successor = _Child(child.name, child.command, child.environment)
                successor.pause_s = child.pause_s
                self._children[index] = successor

    def stop(self, grace_s: float = STOP_GRACE_S) -> None:
        """End all processes: ask first, then kill. None is left when this returns."""
        for child in self._children:
            if child.process.poll() is None:
                child.process.terminate()
        deadline = time.monotonic() + grace_s
        for child in self._children:
            try:
                child.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                log.warning("killing_child", child=child.name)
                child.process.kill()
                child.process.wait()
        self._children.clear()

    def _spawn(self, role: str, name: str, threads: int, options: dict[str, str]) -> None:
        config = self._config
        options = {
            **options,
            "--name": name,
            "--gateway": self._gateway_address,
            "--threads": str(threads),
            "--host": "127.0.0.1",
            "--transport": config.transport,
            # Nobody sees these lines but in the tail of a process that failed.
            "--log-level": "info" if config.log_level == "warning" else config.log_level,
            "--log-format": config.log_format,
        }
        if config.secret_file is not None:
            options["--secret-file"] = str(config.secret_file)
        command = [sys.executable, "-m", "glinthawk", role, "--exit-with-parent"]
        command += [text for pair in options.items() for text in pair]
        environment = build_environment(os.environ, threads=threads)
        self._children.append(_Child(name, command, environment))


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
