import contextlib
from pathlib import Path

import gguf
import numpy as np
import pytest

from glinthawk.errors import InvalidConfig
from glinthawk.models.gguf_file import read_gguf


def _write(path: Path) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint32("llama.block_count", 3)
    writer.add_float32("llama.eps", 0.5)
    writer.add_bool("flag", True)
    writer.add_string("text", "naïve")
    writer.add_array("numbers", [1, 2, 3])
    writer.add_token_list(["a", "b"])
    writer.add_tensor("one.weight", np.ones((4, 64), np.float32))
    quantized = gguf.quants.quantize(np.ones((2, 64), np.float32), gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("two.weight", quantized, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_header_equals_that_of_the_gguf_library(tmp_path: Path) -> None:
    path = _write(tmp_path / "m.gguf")
    file = read_gguf(path)
    reader = gguf.GGUFReader(path)
    for key, value in file.metadata.items():
        assert reader.fields[key].contents() == value
    assert {t.name: t.data_offset for t in reader.tensors} == {
        name: tensor.offset for name, tensor in file.tensors.items()
    }
    two = file.tensors["two.weight"]
    assert (two.shape, two.type_name, two.num_rows, two.row_bytes) == ((2, 64), "Q8_0", 2, 68)
    assert file.header_bytes == reader.data_offset


def test_header_cut_anywhere_is_refused(tmp_path: Path) -> None:
    path = _write(tmp_path / "m.gguf")
    data = path.read_bytes()
    end = read_gguf(path).header_bytes - 32
    for length in range(0, end, 7):
        path.write_bytes(data[:length])
        with pytest.raises(InvalidConfig):
            read_gguf(path)


def test_damaged_bytes_give_an_error_or_a_header(tmp_path: Path) -> None:
    path = _write(tmp_path / "m.gguf")
    data = path.read_bytes()
    rng = np.random.default_rng(0)
    end = read_gguf(path).header_bytes
    for _ in range(2000):
        damaged = bytearray(data)
        for at in rng.integers(0, end, 3):
            damaged[at] = rng.integers(0, 256)
        path.write_bytes(damaged)
        with contextlib.suppress(InvalidConfig):
            read_gguf(path)


@pytest.mark.parametrize(
    ("start", "message"), [(b"PK\x03\x04", "not a GGUF file"), (b"GGUF\x01", "version 1")]
)
def test_other_files_are_refused(start: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(start + bytes(64))
    with pytest.raises(InvalidConfig, match=message):
        read_gguf(path)


def test_unknown_tensor_type_has_a_name_for_the_message(tmp_path: Path) -> None:
    path = _write(tmp_path / "m.gguf")
    entry = (0).to_bytes(4, "little") + (0).to_bytes(8, "little")
    name_and_shape = b"one.weight" + b"\x02\0\0\0" + b"\x40" + bytes(7) + b"\x04" + bytes(7)
    data = path.read_bytes()
    assert name_and_shape + entry in data
    changed = (999).to_bytes(4, "little") + entry[4:]
    path.write_bytes(data.replace(name_and_shape + entry, name_and_shape + changed))
    assert read_gguf(path).tensors["one.weight"].type_name == "ggml type 999"
