"""Reads single tensors of a checkpoint into memory that the caller allocated.

Both sources go by Hugging Face's tensor names and read a tensor in pieces of at most 64 MiB,
so that loading needs little more memory than what is kept. Torch lives here and in `weights`.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize
from safetensors import SafetensorError, safe_open

from glinthawk.errors import InvalidConfig, UnsupportedModel
from glinthawk.models.config import ModelConfig
from glinthawk.models.gguf_file import GgufFile, GgufTensor, read_gguf
from glinthawk.models.source import ModelFiles

_PIECE_BYTES = 64 << 20
_SAFE_TYPES = ("F32", "F16", "BF16")
_GGUF_TYPES = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q4_K", "Q5_K", "Q6_K")

_GGUF_OUTER = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}
_GGUF_INNER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


class TensorSource(Protocol):
    """Tensors of one checkpoint, by Hugging Face's names."""

    def names(self) -> frozenset[str]:
        """Return the names of all tensors."""
        ...

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor that is there."""
        ...

    def pieces(self, name: str) -> Iterator[tuple[int, torch.Tensor]]:
        """Yield (first row, rows) of a tensor on the CPU, in order; a vector is one piece.

        Raises:
            UnsupportedModel: the tensor's number format is not read here.
        """
        ...


def open_tensors(files: ModelFiles, config: ModelConfig) -> TensorSource:
    """Return the tensors in `files`.

    Raises:
        InvalidConfig: a file is damaged.
    """
    if files.gguf is not None:
        return GgufTensors(read_gguf(files.gguf), config)
    return SafeTensors(files.weights)


class SafeTensors:
    """Tensors of one or several safetensors files.

    A file is mapped anew for each piece: pages of an old mapping would count as memory of the
    process until it goes.
    """

    def __init__(self, paths: tuple[Path, ...]) -> None:
        self._paths: dict[str, Path] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._types: dict[str, str] = {}
        for path in paths:
            self._read_header(path)

    def names(self) -> frozenset[str]:
        """See `TensorSource`."""
        return frozenset(self._paths)

    def shape(self, name: str) -> tuple[int, ...]:
        """See `TensorSource`."""
        return self._shapes[name]

    def pieces(self, name: str) -> Iterator[tuple[int, torch.Tensor]]:
        """See `TensorSource`."""
        if self._types[name] not in _SAFE_TYPES:
            raise UnsupportedModel(
                f"tensor {name} has the type {self._types[name]}; supported are "
                f"{', '.join(_SAFE_TYPES)}"
            )
        shape = self._shapes[name]
        for start, stop in _row_ranges(shape, itemsize=4):
            with safe_open(self._paths[name], framework="pt", device="cpu") as file:
                yield start, file.get_slice(name)[start:stop]

    def _read_header(self, path: Path) -> None:
        try:
            with safe_open(path, framework="pt", device="cpu"):
                pass  # the library validates the header against the file
            with path.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                header = json.loads(file.read(length))
        except (SafetensorError, OSError, ValueError) as error:
            raise InvalidConfig(f"{path} is not a whole safetensors file: {error}") from error
        header.pop("__metadata__", None)
        for name, entry in header.items():
            self._paths[name] = path
            self._shapes[name] = tuple(entry["shape"])
            self._types[name] = entry["dtype"]


class GgufTensors:
    """Tensors of a GGUF file, dequantized to float32.

    Files of the llama architecture store the rows of q and k so that the pairs that rope
    rotates lie next to each other; Hugging Face's layout, and ours, has them half a head apart:

        GGUF row of head h     0 1 2 3 4 5  is  0 3 1 4 2 5  of Hugging Face (head_dim 6)
    """

    def __init__(self, file: GgufFile, config: ModelConfig) -> None:
        self._file = file
        self._config = config
        self._names = {name: _gguf_name(name) for name in _all_names(config)}

    def names(self) -> frozenset[str]:
        """See `TensorSource`."""
        return frozenset(n for n, stored in self._names.items() if stored in self._file.tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """See `TensorSource`."""
        return self._file.tensors[self._names[name]].shape

    def pieces(self, name: str) -> Iterator[tuple[int, torch.Tensor]]:
        """See `TensorSource`."""
        tensor = self._file.tensors[self._names[name]]
        if tensor.type_name not in _GGUF_TYPES:
            raise UnsupportedModel(
                f"tensor {tensor.name} has the type {tensor.type_name}; supported are "
                f"{', '.join(_GGUF_TYPES)}"
            )
        if len(tensor.shape) == 1:
            values = _dequantize(self._map(tensor, rows=1), tensor)[0]
            yield 0, torch.from_numpy(values[self._row_order(name, len(values))])
            return
        order = self._row_order(name, tensor.num_rows)
        for start, stop in _row_ranges(tensor.shape, itemsize=4):
            raw = self._map(tensor, rows=tensor.num_rows)[order[start:stop]]
            yield start, torch.from_numpy(_dequantize(raw, tensor))

    def _map(self, tensor: GgufTensor, rows: int) -> npt.NDArray[np.uint8]:
        try:
            return np.memmap(
                self._file.path,
                dtype=np.uint8,
                mode="r",
                offset=tensor.offset,
                shape=(rows, tensor.row_bytes),
            )
        except ValueError as error:
            raise InvalidConfig(
                f"{self._file.path} ends before tensor {tensor.name}: {error}"
            ) from error

    def _row_order(self, name: str, num_rows: int) -> npt.NDArray[np.int64]:
        order = np.arange(num_rows)
        is_rotated = ".q_proj." in name or ".k_proj." in name
        if self._config.architecture != "LlamaForCausalLM" or not is_rotated:
            return order
        return order.reshape(-1, self._config.head_dim // 2, 2).swapaxes(1, 2).reshape(-1)


def _row_ranges(shape: tuple[int, ...], *, itemsize: int) -> Iterator[tuple[int, int]]:
    row_bytes = int(np.prod(shape[1:], dtype=np.int64)) * itemsize
    rows = max(1, _PIECE_BYTES // max(row_bytes, 1))
    for start in range(0, shape[0], rows):
        yield start, min(start + rows, shape[0])


def _dequantize(raw: npt.NDArray[np.uint8], tensor: GgufTensor) -> npt.NDArray[np.float32]:
    # A copy first: rows of a mapping are read-only and need not be aligned.
    raw = np.array(raw)
    if tensor.type_name == "F32":
        return raw.view("<f4")
    if tensor.type_name == "F16":
        return raw.view("<f2").astype(np.float32)
    values: npt.NDArray[np.float32] = dequantize(raw, GGMLQuantizationType(tensor.type_id))
    return values


def _all_names(config: ModelConfig) -> Iterator[str]:
    yield from (f"{outer}.weight" for outer in _GGUF_OUTER)
    for layer in range(config.num_layers):
        for inner in _GGUF_INNER:
            yield f"model.layers.{layer}.{inner}.weight"
            if "proj" in inner:
                yield f"model.layers.{layer}.{inner}.bias"


def _gguf_name(name: str) -> str:
    stem, _, suffix = name.rpartition(".")
    if stem in _GGUF_OUTER:
        return f"{_GGUF_OUTER[stem]}.{suffix}"
    _, _, layer, inner = stem.split(".", 3)
    return f"blk.{layer}.{_GGUF_INNER[inner]}.{suffix}"
