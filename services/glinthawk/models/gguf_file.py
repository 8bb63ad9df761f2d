"""Reads the header of a GGUF file: metadata and the table of tensors, never tensor data.

`gguf.GGUFReader` builds numpy objects for every vocabulary entry and takes seconds; this reads
the same fields (GGUF versions 2 and 3, little endian) in a tenth of that, for every process of
the pipeline. Layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import mmap
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from glinthawk.errors import InvalidConfig

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_STRING, _ARRAY = 8, 9
_SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
_DEFAULT_ALIGNMENT = 32


@dataclass(frozen=True)
class GgufTensor:
    """Where a tensor lies. shape: as torch has it, slowest dimension first. type_id: ggml's
    number of the format. offset: bytes from the start of the file."""

    name: str
    shape: tuple[int, ...]
    type_id: int
    offset: int

    @property
    def type_name(self) -> str:
        """The name of the format, such as ``Q4_K``."""
        try:
            return str(GGMLQuantizationType(self.type_id).name)
        except ValueError:
            return f"ggml type {self.type_id}"

    @property
    def row_bytes(self) -> int:
        """Bytes of one row (the fastest dimension)."""
        block, size = GGML_QUANT_SIZES[GGMLQuantizationType(self.type_id)]
        return int(self.shape[-1] // block * size)

    @property
    def num_rows(self) -> int:
        """Rows: the product of all dimensions but the fastest."""
        return prod(self.shape[:-1])


@dataclass(frozen=True)
class GgufFile:
    """The header of a GGUF file. header_bytes: where the tensor data starts."""

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, GgufTensor]
    header_bytes: int


def read_gguf(path: Path) -> GgufFile:
    """Read the header of the GGUF file at `path`.

    Raises:
        InvalidConfig: the file is not GGUF, is truncated, or has an unknown version.
    """
    size = path.stat().st_size
    if size < 24:
        raise InvalidConfig(f"{path} has {size} bytes: too short for a GGUF file")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as blob:
        try:
            return _Parser(blob, path).read()
        except (struct.error, ValueError, TypeError, IndexError) as error:
            raise InvalidConfig(f"{path} is truncated or damaged: {error}") from error


class _Parser:
    """A cursor over the mapped file."""

    def __init__(self, blob: mmap.mmap, path: Path) -> None:
        self._blob = blob
        self._path = path
        self._at = 0

    def read(self) -> GgufFile:
        if self._blob[:4] != _MAGIC:
            raise InvalidConfig(f"{self._path} does not start with {_MAGIC!r}: not a GGUF file")
        self._at = 4
        version = self._scalar("I")
        if version not in _VERSIONS:
            raise InvalidConfig(
                f"{self._path} is GGUF version {version} (or big endian); versions 2 and 3, "
                "little endian, can be read: convert the file again"
            )
        num_tensors, num_fields = self._scalar("Q"), self._scalar("Q")
        metadata: dict[str, Any] = {}
        for _ in range(num_fields):
            key = self._string()
            metadata[key] = self._value(self._scalar("I"))
        entries = [self._tensor_entry() for _ in range(num_tensors)]
        alignment = int(metadata.get("general.alignment", _DEFAULT_ALIGNMENT))
        if alignment <= 0:
            raise InvalidConfig(f"{self._path}: general.alignment is {alignment}, must be positive")
        start = -(-self._at // alignment) * alignment
        tensors = {
            name: GgufTensor(name, shape, type_id, start + offset)
            for name, shape, type_id, offset in entries
        }
        return GgufFile(self._path, metadata, tensors, start)

    def _scalar(self, code: str) -> Any:
        (value,) = struct.unpack_from("<" + code, self._blob, self._at)
        self._at += struct.calcsize("<" + code)
        return value

    def _string(self) -> str:
        length = self._scalar("Q")
        end = self._at + length
        if end > len(self._blob):
            raise IndexError(f"a string of {length} bytes at {self._at} passes the end")
        text = self._blob[self._at : end].decode("utf-8")
        self._at = end
        return text

    def _value(self, kind: int) -> Any:
        if kind in _SCALARS:
            return self._scalar(_SCALARS[kind])
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY:
            raise IndexError(f"metadata of unknown type {kind} at {self._at}")
        element, count = self._scalar("I"), self._scalar("Q")
        if count > len(self._blob):
            raise IndexError(f"an array of {count} elements at {self._at} passes the end")
        if element in _SCALARS:
            code = f"<{count}{_SCALARS[element]}"
            values = list(struct.unpack_from(code, self._blob, self._at))
            self._at += struct.calcsize(code)
            return values
        return [self._value(element) for _ in range(count)]

    def _tensor_entry(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self._string()
        num_dimensions = self._scalar("I")
        if num_dimensions > 8:
            raise IndexError(f"tensor {name!r} has {num_dimensions} dimensions")
        shape = tuple(reversed([self._scalar("Q") for _ in range(num_dimensions)]))
        return name, shape, self._scalar("I"), self._scalar("Q")
