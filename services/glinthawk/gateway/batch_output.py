"""Writing a batch output file so that it may be killed at any moment and gone on with.

Only whole lines count. A line's id carries the number of the input line that it answers, so
the file itself is the record of what is done; a torn last line is cut off when it is opened
again. An open file is locked: two commands never write the same one.

    OUT.jsonl                    lines, appended, never changed
    OUT.jsonl.glinthawk.json     whose output it is (sidecar.py)
"""

import fcntl
import json
import os
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from glinthawk.errors import GlinthawkError, InvalidConfig
from glinthawk.gateway.bodies import parse_line_id
from glinthawk.gateway.sidecar import (
    RunIdentity,
    Sidecar,
    describe_difference,
    read_sidecar,
    sidecar_path,
    write_sidecar,
)

FSYNC_EVERY_S = 5.0
"""How much work a power cut may cost, at most. A killed process loses nothing written."""

_OWNER_WRITES = stat.S_IRUSR | stat.S_IWUSR | stat.S_IRGRP | stat.S_IROTH


@dataclass(frozen=True)
class FinishedLines:
    """What an output file already holds: numbers of input lines; how many were refused."""

    line_numbers: frozenset[int] = frozenset()
    num_failed: int = 0


class OutputFile:
    """An output file that is open and locked. One thread may use it.

    finished: what was there when it was opened. epoch: of this start, from 1.
    """

    def __init__(
        self,
        path: Path,
        identity: RunIdentity,
        *,
        overwrite: bool = False,
        fsync_every_s: float = FSYNC_EVERY_S,
        clock: Callable[[], float],
    ) -> None:
        """Open `path`, go on with what it holds, or begin it.

        clock: seconds, monotonic.

        Raises:
            InvalidConfig: the file belongs to another run and `overwrite` is not set, is in
                use, or cannot be opened.
            GlinthawkError: it cannot be written.
        """
        self._path = path
        self._identity = identity
        self._fsync_every_s = fsync_every_s
        self._clock = clock
        self._is_torn = False
        self._descriptor: int | None = open_locked(path)
        try:
            self.finished, self._num_bytes = self._recover(self._descriptor, overwrite=overwrite)
            self._synced_at_s = clock()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def run_digest(self) -> str:
        """SHA-256 of the run, from which the ids of its lines are made."""
        return self._identity.digest

    def append(self, lines: Sequence[bytes]) -> None:
        """Write whole lines, each with its line end, all or none of them.

        Raises:
            GlinthawkError: the system refuses, for example because the disk is full; the file
                then holds what it held before.
        """
        descriptor = self._writable()
        rest = memoryview(b"".join(lines))
        num_bytes = len(rest)
        is_whole = False
        try:
            while rest:
                rest = rest[os.write(descriptor, rest) :]
            is_whole = True
        except OSError as error:
            raise self._failure("writing", error) from error
        finally:
            # Also on an interrupt: half a line must not stay before the next one.
            if not is_whole:
                self._roll_back(descriptor)
        self._num_bytes += num_bytes
        if self._clock() - self._synced_at_s >= self._fsync_every_s:
            self.sync()

    def sync(self) -> None:
        """Make durable what was written, also against a power cut.

        Raises:
            GlinthawkError: the system says that it is not.
        """
        try:
            os.fsync(self._writable())
        except OSError as error:
            raise self._failure("syncing", error) from error
        self._synced_at_s = self._clock()

    def reserve_epochs(self, count: int) -> int:
        """Raise the epoch by `count`, durably, and return the first of the new numbers.

        Raises:
            GlinthawkError: the sidecar cannot be written.
        """
        first = self.epoch + 1
        self.epoch += count
        write_sidecar(sidecar_path(self._path), Sidecar(self._identity, self.epoch))
        return first

    def close(self) -> None:
        """Sync, close and unlock. Harmless when closed already.

        Raises:
            GlinthawkError: the system says that the last lines are not durable.
        """
        if self._descriptor is None:
            return
        descriptor, self._descriptor = self._descriptor, None
        try:
            os.fsync(descriptor)
        except OSError as error:
            raise self._failure("syncing", error) from error
        finally:
            os.close(descriptor)

    def _recover(self, descriptor: int, *, overwrite: bool) -> tuple[FinishedLines, int]:
        """Check whose file it is, mend its end, raise the epoch; return what is done."""
        sidecar = _read_sidecar(self._path, overwrite=overwrite)
        self.epoch = 0 if sidecar is None else sidecar.epoch
        finished, num_bytes = FinishedLines(), 0
        if os.fstat(descriptor).st_size > 0 and not overwrite:
            self._check_owner(sidecar)
            finished, num_bytes = self._scan(descriptor)
        # Old lines go before the new identity comes, so that they are never taken for its own.
        try:
            os.ftruncate(descriptor, num_bytes)
            os.fsync(descriptor)
        except OSError as error:
            raise self._failure("mending", error) from error
        self.reserve_epochs(1)
        return finished, num_bytes

    def _check_owner(self, sidecar: Sidecar | None) -> None:
        difference: str | None = f"an unknown run ({sidecar_path(self._path).name} is missing)"
        if sidecar is not None:
            difference = describe_difference(sidecar.identity, self._identity)
        if difference is not None:
            raise InvalidConfig(
                f"output {self._path} belongs to {difference}; choose another output, or "
                "--overwrite to lose what it holds"
            )

    def _scan(self, descriptor: int) -> tuple[FinishedLines, int]:
        """Return what the whole lines answer, and how many bytes they are."""
        line_numbers: set[int] = set()
        num_failed = num_bytes = 0
        os.lseek(descriptor, 0, os.SEEK_SET)
        with open(descriptor, "rb", closefd=False) as file:
            for row, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    break
                answered = _read_output_line(line, self.run_digest)
                if answered is None:
                    raise InvalidConfig(
                        f"line {row} of output {self._path} is not an answer of this run; "
                        "choose another output, or --overwrite to lose what it holds"
                    )
                line_numbers.add(answered[0])
                num_failed += answered[1] != HTTPStatus.OK
                num_bytes += len(line)
        return FinishedLines(frozenset(line_numbers), num_failed), num_bytes

    def _writable(self) -> int:
        if self._descriptor is None:
            raise GlinthawkError(f"output {self._path} is closed")
        if self._is_torn:
            raise GlinthawkError(
                f"output {self._path} ends in half a line since a write failed; run the same "
                "command again, which mends it"
            )
        return self._descriptor

    def _roll_back(self, descriptor: int) -> None:
        """Cut off what a failed write left; if even that fails, write no more."""
        try:
            os.ftruncate(descriptor, self._num_bytes)
        except OSError:
            self._is_torn = True

    def _failure(self, doing: str, error: OSError) -> GlinthawkError:
        return GlinthawkError(
            f"{doing} output {self._path} failed: {error.strerror}; finished lines are kept. "
            "Free space, then run the same command again"
        )


def open_locked(path: Path) -> int:
    """Return a descriptor for appending that no other process has."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, _OWNER_WRITES)
    except OSError as error:
        raise InvalidConfig(f"output {path} cannot be opened: {error.strerror}") from error
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise InvalidConfig(f"output {path} is not a regular file")
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise InvalidConfig(
            f"output {path} is being written by another command; wait for it or choose another"
        ) from error
    except OSError as error:
        os.close(descriptor)
        raise InvalidConfig(f"output {path} cannot be locked: {error.strerror}") from error
    except InvalidConfig:
        os.close(descriptor)
        raise
    return descriptor


def _read_sidecar(path: Path, *, overwrite: bool) -> Sidecar | None:
    """Return the sidecar; one that cannot be read is no obstacle when it will be replaced."""
    try:
        return read_sidecar(sidecar_path(path))
    except InvalidConfig:
        if overwrite:
            return None
        raise


def _read_output_line(line: bytes, run_digest: str) -> tuple[int, int] | None:
    """Return (input line number, status code) of an output line; None if it is not of the run."""
    try:
        document: Any = json.loads(line)
        line_number = parse_line_id(document["id"], run_digest)
        status_code = int(document["response"]["status_code"])
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return None if line_number is None else (line_number, status_code)
