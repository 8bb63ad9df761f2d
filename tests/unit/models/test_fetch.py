"""Fetching against the stand-in hub, which serves what the real one does."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from cluster.hub import ModelRepository, build_server
from factories_models import make_tiny_model
from glinthawk.cli_fetch import run_fetch
from glinthawk.config import FetchConfig
from glinthawk.errors import InvalidConfig, PeerUnavailable
from glinthawk.models import fetch as fetching
from glinthawk.models import hub
from glinthawk.models.load import load_config
from glinthawk.models.source import model_digest, resolve_model, tokenizer_digest
from glinthawk.models.weights import load_stage_weights

NAME = "demo/tiny"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model("llama3", tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def endpoint(model: Path) -> Iterator[str]:
    server = build_server(ModelRepository(NAME, model), "127.0.0.1", 0)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


def fetch(endpoint: str, folder: Path, **more: object) -> int:
    values = {"model": NAME, "endpoint": endpoint, "folder": folder, **more}
    return run_fetch(FetchConfig.model_validate(values))


@pytest.mark.parametrize("stage", [0, 1])
def test_a_stage_gets_its_tensors_and_the_digests_of_the_whole(
    model: Path, endpoint: str, tmp_path: Path, stage: int
) -> None:
    assert fetch(endpoint, tmp_path / "part", stage=stage, num_stages=2) == 0
    whole, part = resolve_model(str(model)), resolve_model(str(tmp_path / "part"))
    assert model_digest(part) == model_digest(whole)
    assert tokenizer_digest(part) == tokenizer_digest(whole)
    config = load_config(part)
    first, last = config.split_layers(2)[stage]
    wanted, found = (
        load_stage_weights(files, config, first, last, weight_dtype=torch.float32)
        for files in (whole, part)
    )
    for ours, theirs in zip(found.layers, wanted.layers, strict=True):
        assert torch.equal(ours.qkv, theirs.qkv)
        assert torch.equal(ours.down, theirs.down)
    for name in ("embedding", "lm_head", "final_norm"):
        ours, theirs = getattr(found, name), getattr(wanted, name)
        assert (ours is None) == (theirs is None)
        assert ours is None or torch.equal(ours, theirs)


def test_a_gateway_gets_the_shape_and_the_tokenizer(
    model: Path, endpoint: str, tmp_path: Path
) -> None:
    assert fetch(endpoint, tmp_path / "none") == 0
    whole, part = resolve_model(str(model)), resolve_model(str(tmp_path / "none"))
    assert load_config(part) == load_config(whole)
    assert model_digest(part) == model_digest(whole)
    assert tokenizer_digest(part) == tokenizer_digest(whole)


def test_what_is_there_is_not_fetched_again_and_serves_while_the_hub_is_away(
    endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "model"
    fetch(endpoint, folder, stage=0, num_stages=2)
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    fetch(endpoint, folder, stage=0, num_stages=2)
    monkeypatch.setattr(hub, "ATTEMPTS", 1)
    away = "http://127.0.0.1:9"
    assert fetch(away, folder, stage=0, num_stages=2) == 0
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    with pytest.raises(PeerUnavailable, match="cannot be had"):
        fetch(away, folder, stage=1, num_stages=2)
    fetch(endpoint, folder, stage=1, num_stages=2)
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} != before


def test_a_stage_that_does_not_fit_is_refused_with_the_calculation_before_its_tensors(
    endpoint: str, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    with pytest.raises(InvalidConfig, match=r"stage 0 of 2 does not fit .* weights \+ .* = "):
        fetch(endpoint, folder, stage=0, num_stages=2, device_memory="1MiB")
    assert not list(folder.glob("*.safetensors"))


def test_what_the_hub_does_not_have_is_an_error_that_names_it(
    endpoint: str, tmp_path: Path
) -> None:
    with pytest.raises(InvalidConfig, match="demo/other"):
        fetch(endpoint, tmp_path, model="demo/other")
    with pytest.raises(InvalidConfig, match="v9"):
        fetch(endpoint, tmp_path, revision="v9")


def test_what_is_not_needed_is_a_hole(
    endpoint: str, tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "_GAP_BYTES", 0)
    fetch(endpoint, tmp_path / "all", stage=0, num_stages=1)
    fetch(endpoint, tmp_path / "half", stage=1, num_stages=2)
    fetch(endpoint, tmp_path / "none")
    (name,) = (path.name for path in model.glob("*.safetensors"))
    assert (tmp_path / "all" / name).read_bytes() == (model / name).read_bytes()
    blanks = [(tmp_path / part / name).read_bytes().count(0) for part in ("all", "half", "none")]
    assert blanks == sorted(blanks)
    assert blanks[0] < blanks[1] < blanks[2]
