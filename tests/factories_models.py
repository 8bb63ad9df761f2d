"""Builds tiny random models of every family, with a real tokenizer, for tests.

The weights are random but not flat: greedy outputs vary along a sequence and depend on the
prompt, so that a wrong mask, rotation or permutation changes the tokens.
"""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

FAMILIES = ("llama2", "llama3", "mistral", "qwen2", "qwen3", "smollm2")

BOS = "<|endoftext|>"
IM_START = "<|im_start|>"
IM_END = "<|im_end|>"

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('unknown role ' + message['role']) }}{% endif %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

_TEXT = (
    "The hawk circled over the valley and the river below was bright as glass.",
    "A large language model predicts the next token from the tokens before it.",
    "Where memory is cheap and bandwidth is enough, attention may live elsewhere.",
    "She said that the weather would turn before evening, and it did.",
    "Ein kurzer Satz auf Deutsch; une phrase courte en français; 一句话。",
    "def add(first, second):\n    return first + second\n",
    "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, and then a hundred or a thousand more.",
)

_COMMON: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "initializer_range": 0.2,
}

_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 50_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}

_FAMILY: dict[str, tuple[str, dict[str, Any]]] = {
    "llama2": ("llama", {"num_key_value_heads": 4}),
    "llama3": ("llama", {"rope_parameters": _LLAMA3_ROPE}),
    "mistral": ("mistral", {"sliding_window": 24}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {"head_dim": 48}),
    "smollm2": (
        "llama",
        {
            "tie_word_embeddings": True,
            "num_attention_heads": 3,
            "num_key_value_heads": 1,
            "hidden_size": 96,
        },
    ),
}


def make_tiny_tokenizer(*, chat_template: str | None = CHAT_TEMPLATE) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer of 384 entries on a few sentences."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=384,
        special_tokens=[BOS, IM_START, IM_END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_TEXT, trainer)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=IM_END, pad_token=IM_END
    )
    wrapped.chat_template = chat_template
    return wrapped


def make_tiny_model(
    family: str,
    path: Path,
    *,
    seed: int = 0,
    max_shard_size: str = "1GB",
    with_tokenizer: bool = True,
    **overrides: Any,
) -> Path:
    """Save a random float32 model of `family` (see FAMILIES) with its tokenizer into `path`.

    overrides: fields of the transformers config, such as num_hidden_layers=3.
    max_shard_size: a small size such as "200KB" gives a sharded checkpoint with an index.
    """
    model_type, special = _FAMILY[family]
    tokenizer = make_tiny_tokenizer()
    options = {**_COMMON, "vocab_size": len(tokenizer), **special, **overrides}
    options.setdefault("bos_token_id", tokenizer.bos_token_id)
    options.setdefault("eos_token_id", tokenizer.eos_token_id)
    options.setdefault("pad_token_id", tokenizer.pad_token_id)
    model = build_random_model(model_type, seed=seed, **options)
    transformers_logging.disable_progress_bar()
    model.save_pretrained(path, max_shard_size=max_shard_size)
    if with_tokenizer:
        tokenizer.save_pretrained(path)
    return path


def build_random_model(model_type: str, *, seed: int, **options: Any) -> Any:
    """Return a random transformers model whose norms, biases and logits are not trivial."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(model_type, **options), dtype=torch.float32
        )
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith("norm.weight"):
                    parameter.uniform_(0.6, 1.4)
                elif name.endswith("bias"):
                    parameter.normal_(0.0, 0.3)
    return model.eval()
