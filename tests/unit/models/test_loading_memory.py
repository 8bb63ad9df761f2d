"""A stage's peak memory shows that it reads its own layers only."""

import json
import subprocess
import sys
from pathlib import Path

import gguf
import pytest
import torch
from safetensors.torch import save_file

from factories_gguf import write_gguf
from factories_models import build_random_model

LAYERS = 12
HIDDEN = 768
INTERMEDIATE = 3072
MIB = 1 << 20

# Peak resident memory over what torch itself takes, in MiB.
PROGRAM = """
import resource, sys
import gguf, torch, safetensors
from glinthawk.models.load import load_config
from glinthawk.models.source import resolve_model
from glinthawk.models.weights import load_stage_weights

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

torch.set_num_threads(1)
files = resolve_model(sys.argv[1])
config = load_config(files)
torch.zeros(1000).to(torch.bfloat16)
before = peak()
first, last = int(sys.argv[2]), int(sys.argv[3])
weights = load_stage_weights(files, config, first, last, weight_dtype=torch.bfloat16)
held = sum(
    value.nbytes for layer in weights.layers for value in vars(layer).values() if value is not None
)
print(held / 2**20, peak() - before)
"""


def _options() -> dict[str, int]:
    return {
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 12,
        "num_key_value_heads": 12,
        "head_dim": 64,
        "vocab_size": 320,
    }


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("large")
    model = build_random_model("llama", seed=0, **_options())
    quantized = write_gguf(root / "m.gguf", model, quant=gguf.GGMLQuantizationType.F16)
    folder = root / "hf"
    folder.mkdir()
    config = {**model.config.to_dict(), "architectures": ["LlamaForCausalLM"]}
    (folder / "config.json").write_text(json.dumps(config))
    tensors = {name: value.to(torch.bfloat16) for name, value in model.state_dict().items()}
    save_file(tensors, folder / "model.safetensors")
    return {"safetensors": folder, "gguf": quantized}


@pytest.mark.parametrize("kind", ["safetensors", "gguf"])
def test_peak_memory_is_that_of_the_stages_own_layers(
    kind: str, checkpoints: dict[str, Path]
) -> None:
    path = checkpoints[kind]
    size = sum(file.stat().st_size for file in ([path] if path.is_file() else path.iterdir()))
    held, peak = _measure(path, 4, 8)
    assert held > 60
    assert size / MIB > 2.5 * held
    # One piece of a tensor (at most 9 MiB as float32, several copies while it is converted).
    assert peak < held + 48


def _measure(path: Path, first: int, last: int) -> tuple[float, float]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(path), str(first), str(last)],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    held, peak = map(float, done.stdout.split())
    return held, peak
