"""Reads the shape of a model, from whichever kind of file it has."""

from glinthawk.models.config import ModelConfig
from glinthawk.models.gguf_config import load_gguf_config
from glinthawk.models.hf_config import load_hf_config
from glinthawk.models.source import ModelFiles


def load_config(files: ModelFiles) -> ModelConfig:
    """Read the shape of the model in `files`.

    Raises:
        UnsupportedModel: the architecture or an option of it is not computed here.
        InvalidConfig: a file is damaged or a field is missing.
    """
    if files.gguf is not None:
        return load_gguf_config(files.gguf)
    assert files.folder is not None, "ModelFiles has a folder or a GGUF file"
    return load_hf_config(files.folder)
