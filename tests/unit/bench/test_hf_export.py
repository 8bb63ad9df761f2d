import json
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from factories_gguf import write_gguf
from factories_models import make_tiny_tokenizer, save_tiny_model
from glinthawk.bench.hf_export import describe_config, ensure_hf_folder
from glinthawk.core.dtype import DType
from glinthawk.errors import UnsupportedModel
from glinthawk.models.hf_tokenizer import load_tokenizer
from glinthawk.models.load import load_config
from glinthawk.models.source import resolve_model
from transformers import AutoModelForCausalLM
