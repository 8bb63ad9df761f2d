"""The greedy texts of SmolLM2 that transformers gives in float32, kept as a fixture.

Written by `python tests/fixtures_smollm2.py`, read by the parity test, so that the test needs no
minutes of reference computation. For each prompt: its token ids, 64 greedy tokens (end tokens
ignored), the gap of the two best logits at each, and the 20 best logprobs at every eighth.
"""

import json
import warnings
from pathlib import Path
from typing import Any

PATH = Path(__file__).parent / "fixtures" / "smollm2_greedy.json"
NUM_PROMPTS = 32
NUM_TOKENS = 64
TOP_EVERY = 8


def read_cases() -> list[dict[str, Any]]:
    """Return the cases of the fixture."""
    cases: list[dict[str, Any]] = json.loads(PATH.read_text())["cases"]
    return cases


def _write() -> None:
    import torch
    from transformers import __version__ as transformers_version

    from factories_gguf import build_reference_from_gguf
    from glinthawk.models.hf_tokenizer import load_tokenizer
    from glinthawk.models.source import resolve_model

    files = resolve_model("smollm2-135m")
    tokenizer = load_tokenizer(files)
    assert files.gguf is not None
    model = build_reference_from_gguf(files.gguf)
    lines = Path(__file__).parents[1].joinpath("examples/prompts.jsonl").read_text().splitlines()
    cases = []
    for line in lines[:NUM_PROMPTS]:
        body = json.loads(line)["body"]
        prompt = (
            tokenizer.apply_chat_template(body["messages"])
            if "messages" in body
            else tokenizer.encode(body["prompt"])
        )
        with torch.inference_mode(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            cases.append(_generate(model, list(prompt)))
        print(len(cases), len(prompt), flush=True)
    document = {
        "model": "SmolLM2-135M-Instruct, Q4_1 GGUF dequantised, float32",
        "transformers": transformers_version,
        "torch": torch.__version__,
        "cases": cases,
    }
    PATH.parent.mkdir(exist_ok=True)
    PATH.write_text(json.dumps(document) + "\n")


def _generate(model: Any, prompt: list[int]) -> dict[str, Any]:
    import torch

    tokens: list[int] = []
    gaps: list[float] = []
    logprobs: list[float] = []
    top: dict[int, dict[int, float]] = {}
    inputs, cache = torch.tensor([prompt]), None
    for step in range(NUM_TOKENS):
        output = model(inputs, past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        scores = torch.log_softmax(output.logits[0, -1].float(), dim=-1)
        best = torch.topk(scores, 20)
        tokens.append(int(best.indices[0]))
        gaps.append(round(float(best.values[0] - best.values[1]), 7))
        logprobs.append(round(float(best.values[0]), 6))
        if step % TOP_EVERY == 0:
            pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
            top[step] = {token: round(value, 6) for token, value in pairs}
        inputs = torch.tensor([[tokens[-1]]])
    return {"prompt": prompt, "tokens": tokens, "gaps": gaps, "logprobs": logprobs, "top": top}


if __name__ == "__main__":
    _write()
