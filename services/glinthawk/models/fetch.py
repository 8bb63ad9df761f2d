"""Fetches of a hub's model what one process needs: a stage its layers' tensors, a gateway none.

A file with tensors keeps its size and its header; of the rest only what is needed is fetched, and
what `model_digest` looks at. The gaps are holes, which take no room on the disk:

    hub     | header | layer 0 | layer 1 | layer 2 | layer 3 | head |
    stage 1 | header |   ..       .      | layer 2 | layer 3 | head |    . blocks of the digest

So every process sees the same files, with the same digest. Knows no torch.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from glinthawk.errors import InvalidConfig, PeerUnavailable
from glinthawk.models.config import ModelConfig
from glinthawk.models.hf_config import load_hf_config
from glinthawk.models.hub import Hub, RemoteFile, Repository
from glinthawk.models.source import digest_ranges, is_model_file
from glinthawk.models.tensor_names import select_stage_tensors
from glinthawk.telemetry.logging import get_logger

log = get_logger("models.fetch")

RECORD = "fetched.json"
_GAP_BYTES = 1 << 20
"""Ranges that lie closer together are one."""

_MAX_HEADER_BYTES = 64 << 20


@dataclass(frozen=True)
class FetchRequest:
    """What is asked for. layers: of the stage that it is for, as (index, number of stages); None
    for a process without tensors."""

    model: str
    revision: str | None
    layers: tuple[int, int] | None


@dataclass(frozen=True)
class _Header:
    """Of a safetensors file: its length with all that stands before data, and [first, last) of
    each tensor in the file."""

    num_bytes: int
    tensors: dict[str, tuple[int, int]]


def read_shape(hub: Hub, repository: Repository, folder: Path) -> ModelConfig:
    """Fetch a model's small files into `folder`, and return its shape.

    Raises:
        InvalidConfig: it has no config.json, or one that is damaged.
        UnsupportedModel: it is a model that is not computed here.
        PeerUnavailable: the hub does not answer.
    """
    if "config.json" not in repository.files:
        raise InvalidConfig(
            f"{repository.name} has no config.json: give a repository in Hugging Face layout"
        )
    folder.mkdir(parents=True, exist_ok=True)
    for name in sorted(filter(is_model_file, repository.files)):
        if not name.endswith(".safetensors"):
            remote = hub.open(repository, name)
            _write(folder / name, remote, [(0, remote.size)])
    return load_hf_config(folder)


def fetch_tensors(
    hub: Hub,
    repository: Repository,
    config: ModelConfig,
    folder: Path,
    layers: tuple[int, int] | None,
) -> int:
    """Fetch what a stage with the layers [first, last) reads; return the bytes fetched.

    Raises:
        InvalidConfig: there are no weights, or a file is damaged.
        PeerUnavailable: the hub does not answer.
    """
    names = _list_weights(repository, folder)
    remotes = {name: hub.open(repository, name) for name in names}
    headers = {name: _read_header(name, remote) for name, remote in remotes.items()}
    tensors = {tensor for header in headers.values() for tensor in header.tensors}
    needed = select_stage_tensors(tensors, config, *layers) if layers else frozenset()
    fetched = 0
    for name, remote in remotes.items():
        header = headers[name]
        wanted = [where for tensor, where in header.tensors.items() if tensor in needed]
        ranges = _merge([*digest_ranges(remote.size, header.num_bytes), *wanted])
        log.info("fetching", file=name, bytes=sum(b - a for a, b in ranges), size=remote.size)
        fetched += _write(folder / name, remote, ranges)
    return fetched


def is_fetched(folder: Path, request: FetchRequest, commit: str | None) -> bool:
    """Tell whether `folder` holds what is asked for. commit: the hub's; None if it is not known,
    then any commit of the same request counts."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    known = record.pop("commit", None)
    return bool(record == _describe(request) and (commit is None or commit == known))


def record_fetched(folder: Path, request: FetchRequest, commit: str) -> None:
    """Say in `folder` that all is there; a folder without it is fetched anew."""
    path = folder / RECORD
    path.write_text(json.dumps({**_describe(request), "commit": commit}), encoding="utf-8")


def forget_fetched(folder: Path) -> None:
    """Say that `folder` is being written."""
    (folder / RECORD).unlink(missing_ok=True)


def describe_or_keep(hub: Hub, request: FetchRequest, folder: Path) -> Repository | None:
    """Return what the hub has; None if `folder` has it already, or the hub is away and `folder`
    holds what it had.

    Raises:
        InvalidConfig: the hub has no such model.
        PeerUnavailable: the hub is away, and nothing is here.
    """
    try:
        repository = hub.describe(request.model, request.revision)
    except PeerUnavailable as error:
        if is_fetched(folder, request, None):
            log.warning("hub_away", error=str(error), folder=str(folder))
            return None
        raise
    return None if is_fetched(folder, request, repository.commit) else repository


def _describe(request: FetchRequest) -> dict[str, object]:
    described: dict[str, object] = json.loads(json.dumps(asdict(request)))
    return described


def _list_weights(repository: Repository, folder: Path) -> list[str]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            names = set(json.loads(index.read_bytes())["weight_map"].values())
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise InvalidConfig(f"{index} is not a safetensors index: {error}") from error
    else:
        found = {name for name in repository.files if is_model_file(name)}
        names = {name for name in found if name.endswith(".safetensors")}
    missing = sorted(names - repository.files)
    if not names or missing:
        lacking = ", ".join(missing) or "weights (*.safetensors)"
        raise InvalidConfig(f"{repository.name} has no {lacking}")
    return sorted(names)


def _read_header(name: str, remote: RemoteFile) -> _Header:
    length = int.from_bytes(remote.read(0, min(8, remote.size)), "little")
    if length > min(_MAX_HEADER_BYTES, remote.size - 8):
        raise InvalidConfig(f"{name} states a header of {length} bytes: not a safetensors file")
    start = 8 + length
    try:
        entries = json.loads(remote.read(8, start))
        entries.pop("__metadata__", None)
        tensors = {
            tensor: (start + entry["data_offsets"][0], start + entry["data_offsets"][1])
            for tensor, entry in entries.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise InvalidConfig(f"{name} is not a safetensors file: {error}") from error
    return _Header(start, tensors)


def _merge(ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the same bytes in order, in ranges that lie apart."""
    merged: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if merged and first <= merged[-1][1] + _GAP_BYTES:
            merged[-1] = (merged[-1][0], max(merged[-1][1], last))
        elif first < last:
            merged.append((first, last))
    return merged


def _write(path: Path, remote: RemoteFile, ranges: Sequence[tuple[int, int]]) -> int:
    """Write ranges of a file, beside its final name first; return the bytes written."""
    unfinished = path.with_name(f".{path.name}.part")
    written = 0
    with unfinished.open("wb") as file:
        file.truncate(remote.size)
        for first, last in ranges:
            file.seek(first)
            for block in remote.stream(first, last):
                file.write(block)
                written += len(block)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)
    return written
