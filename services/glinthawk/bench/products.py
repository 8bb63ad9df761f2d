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
from glinthawk.stage.runner import HEAD_TOKENS

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
        inputs = (config.hidden_size, config.query_size, config.intermediate_size)
        outputs = (config.qkv_size, config.hidden_size, 2 * config.intermediate_size, HEAD_TOKENS)
        self._inputs = {width: torch.rand(rows, width).to(dtype) for width in inputs}
        self._output = torch.empty(max(outputs) * rows, dtype=dtype)
        self._rows = rows

    def run_layers(self) -> None:
        """Run the products of all layers once."""
        for layer in self._layers:
            for weight in (layer.qkv, layer.output, layer.gate_up, layer.down):
                self._multiply(weight)

    def run_head(self) -> None:
        """Run the product of the output head once."""
        for part in torch.split(self._head, HEAD_TOKENS):
            self._multiply(part)

    def _multiply(self, weight: torch.Tensor) -> None:
        width, inputs = weight.shape
        output = self._output[: width * self._rows].view(width, self._rows)
        torch.mm(weight, self._inputs[inputs].t(), out=output)


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
