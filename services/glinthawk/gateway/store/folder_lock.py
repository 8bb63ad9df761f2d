"""The lock that keeps a second gateway off a data folder.

It is the kernel's, so it is gone when its holder is, however that ends.
"""

import contextlib
import fcntl
import os
from pathlib import Path

from glinthawk.errors import InvalidConfig
from glinthawk.gateway.store.failures import translate_file_failures

_FILENAME = "lock"


class FolderLock:
    """A lock on a folder, held from its making until `release`.

    Raises:
        InvalidConfig: another process holds it.
        StoreUnavailable: the folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        with translate_file_failures():
            self._descriptor: int | None = os.open(
                folder / _FILENAME, os.O_RDWR | os.O_CREAT, mode=0o600
            )
        try:
            self._lock(self._descriptor, folder)
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        """Let others have the folder; the second time is harmless."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    @staticmethod
    def _lock(descriptor: int, folder: Path) -> None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip() or "unknown"
            raise InvalidConfig(
                f"the data folder {folder} is in use by another gateway (process {holder}); "
                "stop that one, or give this one a folder of its own"
            ) from error
        except OSError as error:
            raise InvalidConfig(
                f"the data folder {folder} cannot be locked ({error}); put it on a file system "
                "that has locks, such as a local disk"
            ) from error
        # Only for the message above, so a full disk does not matter.
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
