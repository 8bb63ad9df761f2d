"""Which tensors of a checkpoint a stage holds, by Hugging Face's names. Knows no torch."""

import re
from collections.abc import Collection

from glinthawk.models.config import ModelConfig

EMBEDDING = "model.embed_tokens.weight"
LM_HEAD = "lm_head.weight"
FINAL_NORM = "model.norm.weight"
LAYER_NAME = re.compile(r"model\.layers\.(\d+)\.(.+)")


def name_embedding(config: ModelConfig, names: Collection[str]) -> str:
    """Return the tensor that embeds tokens.

    As in transformers: of a tied pair, the one that is in the checkpoint serves as both ...
    """
    only_head = config.tied_embeddings and EMBEDDING not in names and LM_HEAD in names
    return LM_HEAD if only_head else EMBEDDING


def name_lm_head(config: ModelConfig, names: Collection[str]) -> str:
    """Return the tensor of the output head.

    ... and where both are there, each is used, because the config may be wrong.
    """
    only_embedding = config.tied_embeddings and LM_HEAD not in names
    return EMBEDDING if only_embedding else LM_HEAD


def select_stage_tensors(
    names: Collection[str], config: ModelConfig, first: int, last: int
) -> frozenset[str]:
    """Return those of `names` that a stage with the layers [first, last) reads."""
    selected = {
        name
        for name in names
        if (match := LAYER_NAME.fullmatch(name)) and first <= int(match[1]) < last
    }
    if first == 0:
        selected.add(name_embedding(config, names))
    if last == config.num_layers:
        selected |= {name_lm_head(config, names), FINAL_NORM}
    return frozenset(selected & set(names))
