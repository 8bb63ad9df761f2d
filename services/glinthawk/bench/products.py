"""The model's matrix products alone: what is left of a run if all else cost nothing.

    python -m glinthawk.bench.products REQUEST.json RESULT.json

A process of its own, so that its threads and memory are gone when an engine is measured. The
products have the shapes, formats and orientation of a stage's (`stage/layers.py`): for each
layer qkv, output, gate and up, down; the output head once for each generated token. Prompts go
in packs of `prefill_tokens`; decode steps have a row for each prompt. A few steps are measured,
the median counts for all.
"""

import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

from glinthawk.models.config import ModelConfig
from glinthawk.models.load import load_config
from glinthawk.models.source import resolve_model
from glinthawk.models.weights import StageWeights, load_stage_weights
from glinthawk.stage.device import choose_policy, set_threads

_MEASURED_STEPS = 7


def main(request_path: str, result_path: str) -> None:
    """Measure what a request asks for (model, dtype, threads, rows, tokens, prompt_tokens,
    prefill_tokens) and write load_s, run_s, decode_step_s and prefill_s."""
    request = json.loads(Path(request_path).read_text(encoding="utf-8"))
    result = measure_products(request)
    Path(result_path).write_text(json.dumps(result), encoding="utf-8")


def measure_products(request: dict[str, Any]) -> dict[str, Any]:
    """Return the seconds of the products of a whole run; see `main`."""
    begin = time.perf_counter()
    set_threads(request["threads"])
    policy = choose_policy("cpu", request["dtype"])
    files = resolve_model(request["model"])
    config = load_config(files)
    weights = load_stage_weights(
        files,
        config,
        0,
        config.num_layers,
        weight_dtype=policy.products,
        rounded_to=policy.rounded_to,
    )
    rows, prompt_tokens = request["rows"], request["prompt_tokens"]
    pack = min(prompt_tokens, request["prefill_tokens"])
    with torch.inference_mode():
        decode = _Products(config, weights, rows)
        load_s = time.perf_counter() - begin
        layers_s = _median(decode.run_layers)
        head_s = _median(decode.run_head)
        prefill_s = _median(_Products(config, weights, pack).run_layers) * prompt_tokens / pack
    # The first token of each prompt comes from prefill.
    steps = request["tokens"] - 1
    return {
        "load_s": load_s,
        "run_s": steps * layers_s + request["tokens"] * head_s + prefill_s,
        "num_generated_tokens": rows * request["tokens"],
        "decode_step_s": layers_s + head_s,
        "prefill_s": prefill_s,
        "products_dtype": str(policy.products).removeprefix("torch."),
    }


class _Products:
    """The products over `rows` rows, with buffers for them."""

    def __init__(self, config: ModelConfig, weights: StageWeights, rows: int) -> None:
        assert weights.lm_head is not None, "all layers are loaded, so the head is too"
        self._layers = weights.layers
        self._head = weights.lm_head
        dtype = self._head.dtype
        widths = {
            "hidden": config.hidden_size,
            "qkv": config.qkv_size,
            "query": config.query_size,
            "gate": config.intermediate_size,
            "logits": config.vocab_size,
        }
        self._rows = {
            name: torch.rand(rows, width, dtype=torch.float32).to(dtype)
            for name, width in widths.items()
            if name != "logits"
        }
        self._gate_up = torch.empty(2 * config.intermediate_size, rows, dtype=dtype)

    def run_layers(self) -> None:
        """Run the products of all layers once."""
        at = self._rows
        for layer in self._layers:
            torch.mm(at["hidden"], layer.qkv.t(), out=at["qkv"])
            torch.mm(at["query"], layer.output.t())
            torch.mm(layer.gate_up, at["hidden"].t(), out=self._gate_up)
            torch.mm(self._gate_up[: len(self._gate_up) // 2].t(), layer.down.t())

    def run_head(self) -> None:
        """Run the product of the output head once."""
        torch.mm(self._rows["hidden"], self._head.t())


def _median(run: Any) -> float:
    run()
    times = []
    for _ in range(_MEASURED_STEPS):
        begin = time.perf_counter()
        run()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


if __name__ == "__main__":
    main(*sys.argv[1:])
