"""The folder of file contents: a blob is there whole and on disk, or not at all.

    files/file-<hex>         a blob
    files/file-<hex>.part    one being written, or left behind by a process that was killed

It knows no table; who lists files decides which blobs count.
"""

import contextlib
import os
import re
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import BinaryIO

from glinthawk.gateway.store.failures import translate_file_failures
from glinthawk.telemetry.logging import get_logger

_PART_SUFFIX = ".part"
_OURS = re.compile(r"(?P<file_id>file-[0-9a-f]{32})(?P<part>\.part)?")
_LOG = get_logger("gateway.store")


class BlobFolder:
    """See the module. Makes the folder if it is not there.

    Raises:
        StoreUnavailable: the folder cannot be read or written now. So do all methods.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with translate_file_failures():
            folder.mkdir(mode=0o700, exist_ok=True)

    def path(self, file_id: str) -> Path:
        """Return where a blob lies, or would."""
        return self._folder / file_id

    def write(self, file_id: str, content: Iterable[bytes]) -> int:
        """Keep a blob and return its size; an exception from `content` leaves nothing behind."""
        part = self._folder / (file_id + _PART_SUFFIX)
        try:
            num_bytes = self._write_part(part, content)
            with translate_file_failures():
                part.rename(self.path(file_id))
                _sync_folder(self._folder)
        except BaseException:
            # What cannot be removed now is removed at the next start.
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
            self.remove(file_id)
            raise
        return num_bytes

    def open(self, file_id: str) -> BinaryIO | None:
        """Open a blob for reading; None if it is not there."""
        with translate_file_failures():
            try:
                return self.path(file_id).open("rb")
            except FileNotFoundError:
                return None

    def remove(self, file_id: str) -> None:
        """Remove a blob that nothing lists any more; if that fails, the next start does."""
        try:
            self.path(file_id).unlink(missing_ok=True)
        except OSError as error:
            _LOG.warning("blob_not_removed", file_id=file_id, error=str(error))

    def clean(self, listed: Collection[str]) -> None:
        """Remove what was being written when a process ended, and blobs that are not listed."""
        with translate_file_failures():
            for path in list(self._folder.iterdir()):
                match = _OURS.fullmatch(path.name)
                if match and (match["part"] or match["file_id"] not in listed):
                    path.unlink(missing_ok=True)
                    _LOG.info("leftover_removed", name=path.name)

    def _write_part(self, part: Path, content: Iterable[bytes]) -> int:
        """Write and sync. What `content` raises must not be taken for the disk's, nor hidden."""
        num_bytes = 0
        with translate_file_failures():
            descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode=0o600)
        try:
            for piece in content:
                with translate_file_failures():
                    _write_all(descriptor, piece)
                num_bytes += len(piece)
            with translate_file_failures():
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
        return num_bytes


def _write_all(descriptor: int, piece: bytes) -> None:
    rest = memoryview(piece)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
