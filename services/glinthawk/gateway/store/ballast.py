"""A file that only takes up room: on a full disk it gives way to a deletion, which frees more.

    DATA_DIR/ballast    there while the disk has room for it

A deletion is a write of the database too, and a disk that is full to the last byte refuses it.
"""

import contextlib
import os
from pathlib import Path

from glinthawk.errors import StoreUnavailable
from glinthawk.telemetry.logging import get_logger

BALLAST_BYTES = 16 << 20
"""More than a deletion needs, with what others may take of the room meanwhile."""

_LITTLE_BYTES = 1 << 20
"""Room with which a disk counts as full."""

_FILENAME = "ballast"
_LOG = get_logger("gateway.store")


class Ballast:
    """See the module. num_bytes: how large it is; 0 for none."""

    def __init__(self, folder: Path, num_bytes: int) -> None:
        self._path = folder / _FILENAME
        self._part = folder / f"{_FILENAME}.part"
        self._num_bytes = num_bytes

    def helps(self, error: StoreUnavailable) -> bool:
        """Whether there is room to be had, and its want has led to an error.

        SQLite says of some that they are errors of input and output.
        """
        if not self._num_bytes or not self._path.exists():
            return False
        return error.is_full or self._measure_free() < _LITTLE_BYTES

    def give_way(self) -> None:
        """Free the room; harmless where there is none."""
        with contextlib.suppress(OSError):
            self._path.unlink()
            _LOG.warning("ballast_gave_way", num_bytes=self._num_bytes)

    def restore(self, spare_bytes: int = 0) -> None:
        """Take up the room again if as much is free, and `spare_bytes` beside; never an error."""
        if not self._num_bytes or self._path.exists():
            return
        try:
            self._write(spare_bytes)
        except OSError as error:
            _LOG.warning("ballast_not_restored", error=error.strerror)
            with contextlib.suppress(OSError):
                self._part.unlink(missing_ok=True)

    def _measure_free(self) -> int:
        disk = os.statvfs(self._path.parent)
        return disk.f_bavail * disk.f_frsize

    def _write(self, spare_bytes: int) -> None:
        self._part.unlink(missing_ok=True)  # of a process that was killed
        if self._measure_free() < self._num_bytes + spare_bytes:
            return
        descriptor = os.open(self._part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode=0o600)
        try:
            os.posix_fallocate(descriptor, 0, self._num_bytes)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        self._part.rename(self._path)
