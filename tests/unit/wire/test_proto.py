from pathlib import Path

import pytest

from glinthawk.core.dtype import DType
from glinthawk.wire.proto import generate
from glinthawk.wire.proto import membership_pb2 as pb


def test_generated_code_is_what_the_proto_files_give(tmp_path: Path) -> None:
    pytest.importorskip("grpc_tools", reason="grpcio-tools is not installed")
    fresh = generate.generate(tmp_path)
    committed = sorted(generate.HERE.glob("*_pb2*"))
    assert [path.name for path in fresh] == [path.name for path in committed]
    for new, old in zip(fresh, committed, strict=True):
        assert new.read_text() == old.read_text(), f"{old.name} is stale: run `make proto`"


def test_number_formats_have_the_numbers_of_the_frame_header() -> None:
    named = {name.removeprefix("NUMBER_FORMAT_"): value for name, value in pb.NumberFormat.items()}
    assert named.pop("UNSPECIFIED") == 0
    assert named == {dtype.name: dtype.value for dtype in DType}
