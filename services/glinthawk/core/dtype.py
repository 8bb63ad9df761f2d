"""Number formats that tensors have in memory and on the wire."""

from enum import IntEnum


class DType(IntEnum):
    """A number format; the value is what the frame header carries."""

    FLOAT32 = 1
    FLOAT16 = 2
    BFLOAT16 = 3

    @property
    def itemsize(self) -> int:
        """Bytes of one element."""
        return 4 if self is DType.FLOAT32 else 2

    @property
    def label(self) -> str:
        """The name used by configuration, the CRD and torch, such as ``bfloat16``."""
        return self.name.lower()

    @classmethod
    def parse(cls, text: str) -> "DType":
        """Return the format called `text` (``float32``, ``float16``, ``bfloat16``).

        Raises:
            ValueError: no format has that name.
        """
        for dtype in cls:
            if dtype.label == text:
                return dtype
        names = ", ".join(dtype.label for dtype in cls)
        raise ValueError(f"dtype {text!r} is not one of {names}")
