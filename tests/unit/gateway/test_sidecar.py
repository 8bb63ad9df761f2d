import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from glinthawk.errors import GlinthawkError, InvalidConfig
from glinthawk.gateway.sidecar import (
    RemoteRun,
    RunIdentity,
    Sidecar,
    describe_difference,
    read_sidecar,
    sidecar_path,
    write_sidecar,
)

IDENTITY = RunIdentity("i", "m", {"seed": 3, "kv_dtype": None})


def test_it_lies_beside_the_output() -> None:
    assert sidecar_path(Path("a/out.jsonl")) == Path("a/out.jsonl.glinthawk.json")


def test_what_was_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "s"
    assert read_sidecar(path) is None
    write_sidecar(path, Sidecar(IDENTITY, 4))
    assert read_sidecar(path) == Sidecar(IDENTITY, 4)
    assert json.loads(path.read_text())["digest"] == IDENTITY.digest
    assert list(tmp_path.iterdir()) == [path]


def test_a_remote_run_is_kept_with_its_batch(tmp_path: Path) -> None:
    path = tmp_path / "s"
    for remote in (RemoteRun("mark"), RemoteRun("mark", "batch_1", "completed")):
        sidecar = Sidecar(RunIdentity("i", "", {"gateway": "http://here"}), 1, remote)
        write_sidecar(path, sidecar)
        assert read_sidecar(path) == sidecar


def test_a_run_at_a_gateway_is_another_than_one_without() -> None:
    remote = RunIdentity("i", "", {"gateway": "http://here"})
    assert describe_difference(remote, IDENTITY) == "a run at a gateway"
    assert describe_difference(IDENTITY, remote) == "a run without a gateway"


def test_the_digest_does_not_depend_on_the_order_of_parameters() -> None:
    assert RunIdentity("i", "m", {"kv_dtype": None, "seed": 3}).digest == IDENTITY.digest
    assert describe_difference(IDENTITY, IDENTITY) is None


@pytest.mark.parametrize(
    "changed", [{"input_sha256": "x"}, {"model_digest": "x"}, {"parameters": {"seed": 4}}]
)
def test_the_digest_depends_on_everything_that_changes_tokens(changed: dict[str, Any]) -> None:
    other = dataclasses.replace(IDENTITY, **changed)
    assert other.digest != IDENTITY.digest
    assert describe_difference(IDENTITY, other) is not None


def test_a_parameter_that_is_new_is_a_difference() -> None:
    difference = describe_difference(RunIdentity("i", "m"), RunIdentity("i", "m", {"x": None}))
    assert difference == "another x (None, now None)"


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"format": 2}',
        '{"format": 1}',
        '{"format": 1, "epoch": []}',
        '{"format": 1, "input_sha256": "", "model_digest": "", "parameters": {}, "epoch": 1, '
        '"remote": {"no": 1}}',
    ],
)
def test_another_content_is_refused_with_the_way_out(tmp_path: Path, content: str) -> None:
    path = tmp_path / "s"
    path.write_text(content)
    with pytest.raises(InvalidConfig, match="--overwrite"):
        read_sidecar(path)


def test_a_path_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match="cannot be read"):
        read_sidecar(tmp_path)
    with pytest.raises(GlinthawkError, match="cannot be written"):
        write_sidecar(tmp_path / "none" / "s", Sidecar(IDENTITY, 1))
