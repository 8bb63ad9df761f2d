"""Writes a GGUF model as a folder in Hugging Face layout, which is what other engines read.

The folder has model.safetensors, config.json and the tokenizer's files. It is written beside
its final name and renamed, so a folder that is there is whole.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from glinthawk.core.dtype import DType
from glinthawk.errors import UnsupportedModel
from glinthawk.models.config import ModelConfig
from glinthawk.models.load import load_config
from glinthawk.models.source import ModelFiles, model_digest
from glinthawk.models.tensors import open_tensors

_TORCH = {
    DType.FLOAT32: torch.float32,
    DType.FLOAT16: torch.float16,
    DType.BFLOAT16: torch.bfloat16,
}


def ensure_hf_folder(files: ModelFiles, dtype: DType, cache: Path) -> Path:
    """Return a folder in Hugging Face layout with the model in `files`, written if need be.

    A model that is such a folder already is returned as it is.

    Raises:
        UnsupportedModel: the model is not one that can be written here.
    """
    if files.folder is not None:
        return files.folder
    folder = cache / f"{model_digest(files)[:16]}-{dtype.label}"
    if not folder.is_dir():
        unfinished = folder.with_name(f"{folder.name}.{os.getpid()}")
        export_hf_folder(files, dtype, unfinished)
        try:
            unfinished.rename(folder)
        except OSError:
            # Another process was quicker; what it wrote is the same.
            if not folder.is_dir():
                raise
            shutil.rmtree(unfinished)
    return folder


def export_hf_folder(files: ModelFiles, dtype: DType, folder: Path) -> None:
    """Write the GGUF model in `files` to `folder`, its tensors rounded to `dtype`.

    Raises:
        UnsupportedModel: it is not a plain Llama architecture.
    """
    config = load_config(files)
    described = describe_config(config, dtype)
    source = open_tensors(files, config)
    tensors = {
        name: torch.cat([piece.to(_TORCH[dtype]) for _, piece in source.pieces(name)])
        for name in sorted(source.names())
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
    _export_tokenizer(files, folder)


def describe_config(config: ModelConfig, dtype: DType) -> dict[str, Any]:
    """Return `config` as a config.json has it.

    Raises:
        UnsupportedModel: it is not a plain Llama architecture.
    """
    rope = config.rope
    is_plain_rope = rope.linear_factor == 1.0 and not rope.llama3 and not rope.frequency_factors
    if config.architecture != "LlamaForCausalLM" or not is_plain_rope:
        raise UnsupportedModel(
            f"a GGUF file of {config.architecture} with {rope} is not written as a Hugging Face "
            "folder here, only LlamaForCausalLM without rope scaling: give such a folder instead"
        )
    eos = list(config.eos_token_ids)
    return {
        "architectures": [config.architecture],
        "model_type": "llama",
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_query_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.context_length,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": rope.theta,
        "hidden_act": "silu",
        "attention_bias": config.qkv_bias,
        "mlp_bias": config.mlp_bias,
        "tie_word_embeddings": config.tied_embeddings,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": eos[0] if len(eos) == 1 else eos,
        "torch_dtype": dtype.label,
    }


def _export_tokenizer(files: ModelFiles, folder: Path) -> None:
    """Write the tokenizer's files, by transformers' own reader of GGUF."""
    from transformers import AutoTokenizer

    assert files.gguf is not None, "only GGUF models are written"
    tokenizer = AutoTokenizer.from_pretrained(files.gguf.parent, gguf_file=files.gguf.name)
    tokenizer.save_pretrained(folder)
