from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from factories_gguf import write_gguf
from factories_models import make_tiny_model, make_tiny_tokenizer
from glinthawk.bench.hf_export import ensure_hf_folder
from glinthawk.core.dtype import DType
from glinthawk.errors import UnsupportedModel
from glinthawk.models.hf_tokenizer import load_tokenizer
from glinthawk.models.source import ModelFiles, resolve_model

PROMPT = torch.tensor([[5, 9, 77, 200, 31, 8]])


def make_gguf(family: str, tmp_path: Path) -> tuple[ModelFiles, Any]:
    """Return a GGUF file's files and the model that it was made of."""
    path = make_tiny_model(family, tmp_path / "hf")
    model = AutoModelForCausalLM.from_pretrained(path).eval()
    written = write_gguf(tmp_path / "m.gguf", model, tokenizer=make_tiny_tokenizer())
    return resolve_model(str(written)), model


def generate(model: Any) -> list[int]:
    tokens: list[int] = model.generate(
        PROMPT, attention_mask=torch.ones_like(PROMPT), max_new_tokens=24, do_sample=False
    )[0].tolist()
    return tokens


@pytest.mark.parametrize("family", ["llama2", "smollm2"])
def test_the_written_folder_generates_the_same_tokens(family: str, tmp_path: Path) -> None:
    files, model = make_gguf(family, tmp_path)
    folder = ensure_hf_folder(files, DType.FLOAT32, tmp_path / "cache")
    written = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    assert generate(written) == generate(model)
    text = "The hawk circled over the valley."
    expected = load_tokenizer(files).encode(text)
    assert load_tokenizer(resolve_model(str(folder))).encode(text) == expected


def test_tensors_are_rounded_to_the_format_asked_for(tmp_path: Path) -> None:
    files, model = make_gguf("smollm2", tmp_path)
    folder = ensure_hf_folder(files, DType.BFLOAT16, tmp_path / "cache")
    written = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    assert written.dtype is torch.bfloat16
    for name, tensor in model.state_dict().items():
        assert torch.equal(written.state_dict()[name], tensor.to(torch.bfloat16))


def test_a_folder_is_written_once_and_leaves_nothing_unfinished(tmp_path: Path) -> None:
    files, _ = make_gguf("smollm2", tmp_path)
    first = ensure_hf_folder(files, DType.BFLOAT16, tmp_path / "cache")
    stamp = (first / "model.safetensors").stat().st_mtime_ns
    assert ensure_hf_folder(files, DType.BFLOAT16, tmp_path / "cache") == first
    assert (first / "model.safetensors").stat().st_mtime_ns == stamp
    assert list((tmp_path / "cache").iterdir()) == [first]


def test_a_model_that_is_a_folder_is_used_as_it_is(tmp_path: Path) -> None:
    path = make_tiny_model("qwen2", tmp_path / "hf")
    files = resolve_model(str(path))
    assert ensure_hf_folder(files, DType.BFLOAT16, tmp_path / "cache") == path


def test_another_architecture_is_refused_by_name(tmp_path: Path) -> None:
    files, _ = make_gguf("qwen2", tmp_path)
    with pytest.raises(UnsupportedModel, match="Qwen2ForCausalLM"):
        ensure_hf_folder(files, DType.BFLOAT16, tmp_path / "cache")
