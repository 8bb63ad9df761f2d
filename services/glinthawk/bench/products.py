"""The model's matrix products alone: what is left of a run if all else cost nothing.

    python -m glinthawk.bench.products REQUEST.json RESULT.json

A process of its own, so that its threads and memory are gone when an engine is measured. The
products are a stage's own (`stage/products.py`), with the activation between gate, up and down and
the additions to the residual: for each layer qkv, output, feed-forward; the output head once for
each generated token. Prompts go in packs of `prefill_tokens`; decode steps have a row for each
prompt. A few steps are measured, the median counts for all.
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
from glinthawk.stage.buffers import Buffers
from glinthawk.stage.device import choose_policy, set_threads
from glinthawk.stage.products import build_head, build_products

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
        products = _Products(config, weights)
        load_s = time.perf_counter() - begin
        layers_s = _median(lambda: products.run_layers(rows))
        head_s = _median(lambda: products.run_head(rows))
        prefill_s = _median(lambda: products.run_layers(pack)) * prompt_tokens / pack
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
    """The products of all layers and of the head, as a stage computes them."""

    def __init__(self, config: ModelConfig, weights: StageWeights) -> None:
        assert weights.lm_head is not None, "all layers are loaded, so the head is too"
        buffers = Buffers(torch.device("cpu"))
        self._config = config
        self._dtype = weights.lm_head.dtype
        self._layers = [
            build_products(weights.layers.pop(0), buffers) for _ in range(len(weights.layers))
        ]
        self._head = build_head(weights.lm_head, buffers)
        self._buffers = buffers

    def run_layers(self, rows: int) -> None:
        """Run the products of all layers once."""
        h = torch.ones(rows, self._config.hidden_size, dtype=self._dtype)
        o = torch.ones(rows, self._config.query_size, dtype=self._dtype)
        x = torch.ones(rows, self._config.hidden_size)
        for layer in self._layers:
            layer.qkv(h)
            layer.add_feed_forward(layer.add_output(x, o), h)

    def run_head(self, rows: int) -> None:
        """Run the product of the output head once."""
        h = torch.ones(rows, self._config.hidden_size, dtype=self._dtype)
        logits = self._buffers.take("logits", (rows, self._config.vocab_size), torch.float32)
        self._head.write(h, out=logits)


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
