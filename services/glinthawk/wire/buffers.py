"""Reading and writing of fixed-layout little-endian arrays, with every size checked first."""

from typing import Any

import numpy as np
import numpy.typing as npt

from glinthawk.wire.frames import FrameError


class Reader:
    """Takes values from the front of a payload; a claim beyond its end is a FrameError.

    Nothing is allocated before the bytes for it are known to be there, so a payload of n
    bytes never costs more than a small multiple of n.
    """

    def __init__(self, payload: bytes | bytearray | memoryview, what: str) -> None:
        self._view = memoryview(payload)
        self._what = what
        self.offset = 0

    def take(self, num_bytes: int) -> memoryview:
        """Return the next bytes, without a copy.

        Raises:
            FrameError: fewer are left.
        """
        end = self.offset + num_bytes
        if end > len(self._view):
            raise FrameError(
                f"{self._what} needs {end} bytes, the payload has {len(self._view)}: it is cut "
                "short or a count in it is wrong"
            )
        view = self._view[self.offset : end]
        self.offset = end
        return view

    def array(self, dtype: str, count: int) -> npt.NDArray[Any]:
        """Return a copy of the next `count` numbers of a little-endian numpy format."""
        kind = np.dtype(dtype)
        data = self.take(count * kind.itemsize)
        return np.frombuffer(data, kind).astype(kind.newbyteorder("="), copy=True)

    def text(self, num_bytes: int) -> str:
        """Return the next bytes as UTF-8 text."""
        try:
            return str(self.take(num_bytes), "utf-8")
        except UnicodeDecodeError as error:
            raise FrameError(f"{self._what} has text that is not UTF-8: {error}") from error

    def align(self, boundary: int) -> None:
        """Skip to the next multiple of `boundary`."""
        self.take(-self.offset % boundary)

    def finish(self) -> None:
        """Check that nothing is left.

        Raises:
            FrameError: bytes are left over.
        """
        if self.offset != len(self._view):
            raise FrameError(
                f"{self._what} ends after {self.offset} bytes, the payload has {len(self._view)}"
            )


def pack_array(values: Any, dtype: str) -> bytes:
    """Return numbers as the bytes of a little-endian numpy format.

    Raises:
        FrameError: a number does not fit into the format.
    """
    try:
        array = np.asarray(values, dtype)
    except (OverflowError, ValueError, TypeError) as error:
        raise FrameError(f"a number does not fit into {dtype}: {error}") from error
    return array.tobytes()


def require(condition: bool, message: str) -> None:
    """Raise a FrameError with the message unless the condition holds."""
    if not condition:
        raise FrameError(message)
