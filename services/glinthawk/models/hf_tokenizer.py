"""The tokenizers of real models, through the transformers and tokenizers libraries.

No torch: a GGUF file's vocabulary is handed to transformers' converter from our own reader,
because `AutoTokenizer` with a GGUF file imports torch.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from glinthawk.errors import InvalidConfig, InvalidRequest, UnsupportedModel
from glinthawk.models.gguf_file import read_gguf
from glinthawk.models.source import ModelFiles
from glinthawk.models.tokenizer import TokenIdsOnly, Tokenizer

# Set before transformers is imported: it tells users that torch is missing, which is intended.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
_SPACE_MARK = "\u2581"
_DECODERS = ("ByteLevel", "ByteFallback", "Fuse", "Metaspace", "Replace", "Strip")
_LLAMA3_SPLITS = ("llama-bpe", "llama3", "llama-v3")
_SPLITS = (*_LLAMA3_SPLITS, "default", "gpt-2", "smollm", "qwen2", "deepseek-r1-qwen", "tekken")
"""GGUF's names of the ways to split text before byte pairs are merged, those known here."""


def load_tokenizer(files: ModelFiles) -> Tokenizer:
    """Return the tokenizer of the model, or `TokenIdsOnly` where it has none.

    Raises:
        InvalidConfig: the files are there but cannot be read.
        UnsupportedModel: the kind of tokenizer is not known here.
    """
    if files.gguf is not None:
        return _load_gguf_tokenizer(files.gguf)
    assert files.folder is not None, "ModelFiles has a folder or a GGUF file"
    return _load_folder_tokenizer(files.folder)


class HuggingFaceTokenizer:
    """See `Tokenizer`; wraps a transformers tokenizer that has a `tokenizers` backend."""

    def __init__(self, wrapped: Any) -> None:
        backend = getattr(wrapped, "backend_tokenizer", None)
        if backend is None:
            raise UnsupportedModel(
                f"tokenizer {type(wrapped).__name__} is not supported: convert it to a "
                "tokenizer.json"
            )
        # State of the backend is set once, here: changing it while another thread encodes fails.
        backend.no_truncation()
        backend.no_padding()
        self._wrapped = wrapped
        self._backend = backend
        self._added = {
            token: (added.content, bool(added.special))
            for token, added in backend.get_added_tokens_decoder().items()
        }
        decoders = _decoders(backend)
        kinds = {part["type"] for part in decoders}
        self._is_byte_level = "ByteLevel" in kinds
        self._has_byte_fallback = "ByteFallback" in kinds
        self._strips_first_space = any(_strips_first_space(part) for part in decoders)
        self._byte_of = _bytes_by_character()
        self._bytes: dict[int, bytes] = {}

    @property
    def vocab_size(self) -> int:
        """See `Tokenizer`."""
        return int(self._backend.get_vocab_size(with_added_tokens=True))

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """See `Tokenizer`."""
        token = self._wrapped.eos_token_id
        return () if token is None else (int(token),)

    @property
    def has_text(self) -> bool:
        """See `Tokenizer`."""
        return True

    @property
    def strips_first_space(self) -> bool:
        """See `Tokenizer`."""
        return self._strips_first_space

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """See `Tokenizer`."""
        try:
            # Of one text, this call alone lets other threads run meanwhile: a long prompt takes
            # seconds, in which a gateway must not stand still.
            (encoding,) = self._backend.encode_batch_fast(
                [text], add_special_tokens=add_special_tokens
            )
        except (TypeError, UnicodeEncodeError) as error:
            raise InvalidRequest(
                "the text is not valid Unicode (it holds half of a surrogate pair)", param="prompt"
            ) from error
        return list(encoding.ids)

    def apply_chat_template(
        self, messages: Sequence[dict[str, Any]], *, add_generation_prompt: bool = True
    ) -> list[int]:
        """See `Tokenizer`."""
        if not self._wrapped.chat_template:
            raise InvalidRequest(
                "the model has no chat template: send the prompt to /v1/completions",
                param="messages",
            )
        try:
            text = self._wrapped.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=add_generation_prompt
            )
        except (TemplateError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise InvalidRequest(
                f"the model's chat template refuses the messages: {error}", param="messages"
            ) from error
        return self.encode(text, add_special_tokens=False)

    def token_bytes(self, token: int) -> bytes:
        """See `Tokenizer`."""
        found = self._bytes.get(token)
        if found is None:
            found = self._bytes[token] = self._bytes_of(token)
        return found

    def token_text(self, token: int) -> str:
        """See `Tokenizer`."""
        data = self.token_bytes(token)
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            # As OpenAI shows a part of a character, so that no two parts look the same.
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)

    def is_special(self, token: int) -> bool:
        """See `Tokenizer`."""
        added = self._added.get(token)
        return added is not None and added[1]

    def _bytes_of(self, token: int) -> bytes:
        added = self._added.get(token)
        if added is not None:
            return bytes(added[0], "utf-8")
        piece = self._backend.id_to_token(token)
        if piece is None:
            return b""
        if self._is_byte_level:
            if all(character in self._byte_of for character in piece):
                return bytes(self._byte_of[character] for character in piece)
            return str(piece).encode()
        if self._has_byte_fallback and len(piece) == 6 and piece.startswith("<0x"):
            return bytes([int(piece[3:5], 16)])
        return str(piece.replace(_SPACE_MARK, " ")).encode()


def _load_folder_tokenizer(folder: Path) -> Tokenizer:
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        return TokenIdsOnly()
    from transformers import AutoTokenizer

    try:
        wrapped = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, TypeError, KeyError, ImportError, AttributeError) as error:
        raise InvalidConfig(f"the tokenizer in {folder} cannot be loaded: {error}") from error
    return HuggingFaceTokenizer(wrapped)


def _load_gguf_tokenizer(path: Path) -> Tokenizer:
    metadata = read_gguf(path).metadata
    prefix = "tokenizer.ggml."
    fields = {k[len(prefix) :]: v for k, v in metadata.items() if k.startswith(prefix)}
    tokens = fields.get("tokens")
    if not tokens or fields.get("model") in (None, "none", "no_vocab"):
        return TokenIdsOnly()
    from transformers import PreTrainedTokenizerFast
    from transformers.integrations.gguf import convert_gguf_tokenizer

    description = {_RENAMED.get(key, key): value for key, value in fields.items()}
    split = fields.get("pre", "default")
    if fields["model"] == "gpt2" and split not in _SPLITS:
        raise UnsupportedModel(
            f"tokenizer.ggml.pre = {split!r} in {path} is not supported; supported are "
            f"{', '.join(_SPLITS)}"
        )
    try:
        backend, _ = convert_gguf_tokenizer(metadata["general.architecture"], description)
    except (ValueError, KeyError, IndexError) as error:
        raise UnsupportedModel(f"the tokenizer in {path} is not supported: {error}") from error
    is_llama3 = split in _LLAMA3_SPLITS
    if is_llama3:
        backend.model.ignore_merges = True
    # llama.cpp adds BOS to these vocabularies where the file does not say otherwise.
    add_bos = fields.get("add_bos_token", fields["model"] == "llama" or is_llama3)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        chat_template=metadata.get("tokenizer.chat_template"),
        add_bos_token=bool(add_bos),
        add_eos_token=bool(fields.get("add_eos_token", False)),
        bos_token=_token_of(fields, "bos_token_id"),
        eos_token=_token_of(fields, "eos_token_id"),
        unk_token=_token_of(fields, "unknown_token_id"),
        pad_token=_token_of(fields, "padding_token_id"),
    )
    return HuggingFaceTokenizer(wrapped)


_RENAMED = {
    "model": "tokenizer_type",
    "pre": "pre_tokenizer_type",
    "unknown_token_id": "unk_token_id",
    "padding_token_id": "pad_token_id",
    "add_space_prefix": "add_prefix_space",
}
"""The converter's names of GGUF's tokenizer fields, where they differ."""


def _token_of(fields: dict[str, Any], key: str) -> str | None:
    token = fields.get(key)
    tokens = fields["tokens"]
    return tokens[token] if token is not None and token < len(tokens) else None


def _decoders(backend: Any) -> list[dict[str, Any]]:
    """Return the backend's decoders; refuse those that do more than spell bytes and spaces."""
    state = json.loads(backend.decoder.__getstate__()) if backend.decoder else {"type": "None"}
    parts: list[dict[str, Any]] = state.get("decoders", [state])
    for part in parts:
        is_space = part.get("content") == " " and part.get("pattern") == {"String": _SPACE_MARK}
        if part["type"] not in _DECODERS or (part["type"] == "Replace" and not is_space):
            raise UnsupportedModel(
                f"tokenizer decoder {part['type']} is not supported; supported are "
                f"{', '.join(_DECODERS)}"
            )
    return parts


def _strips_first_space(decoder: dict[str, Any]) -> bool:
    if decoder["type"] == "Metaspace":
        return bool(decoder.get("prepend_scheme", "always") != "never")
    return bool(decoder["type"] == "Strip" and decoder.get("start", 0) > 0)


def _bytes_by_character() -> dict[str, int]:
    """Return GPT-2's alphabet: printable Latin-1 stands for itself, the rest from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable}
    alphabet.update({chr(256 + index): byte for index, byte in enumerate(others)})
    return alphabet
