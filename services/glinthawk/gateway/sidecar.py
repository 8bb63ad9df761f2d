"""The small file beside an output file: whose output it is, and how often it was begun.

It is replaced as a whole, so it is never half written.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from glinthawk.errors import GlinthawkError, InvalidConfig

SUFFIX = ".glinthawk.json"

_FORMAT = 1

Parameter = str | int | float | bool | None


@dataclass(frozen=True)
class RunIdentity:
    """What an output depends on. parameters: those that change tokens, by name; how many
    stages or workers compute them is none of these."""

    input_sha256: str
    model_digest: str
    parameters: Mapping[str, Parameter] = field(default_factory=dict)

    @property
    def is_remote(self) -> bool:
        """Whether a gateway runs it, whose model this command does not know."""
        return "gateway" in self.parameters

    @property
    def digest(self) -> str:
        """SHA-256 over all of it, hexadecimal."""
        document = [self.input_sha256, self.model_digest, sorted(self.parameters.items())]
        return hashlib.sha256(json.dumps(document).encode()).hexdigest()


@dataclass(frozen=True)
class RemoteRun:
    """A run that a gateway works on. mark: names it in the batch's metadata, and is there before
    the batch is. status: the final one, once the output is whole."""

    mark: str
    batch_id: str | None = None
    status: str | None = None


@dataclass(frozen=True)
class Sidecar:
    """The content of the file. epoch: raised at each start and each re-registration. remote:
    None for a run on tiers of the command's own."""

    identity: RunIdentity
    epoch: int
    remote: RemoteRun | None = None


def sidecar_path(output_path: Path) -> Path:
    """Return where the sidecar of an output file lies."""
    return output_path.with_name(output_path.name + SUFFIX)


def read_sidecar(path: Path) -> Sidecar | None:
    """Return the sidecar, or None where there is none.

    Raises:
        InvalidConfig: it cannot be read, or was not written by this version.
    """
    try:
        document = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InvalidConfig(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise InvalidConfig(f"{path} is damaged: {error}; start with --overwrite") from error
    return _parse(document, path)


def write_sidecar(path: Path, sidecar: Sidecar) -> None:
    """Put `sidecar` in place, durably, whole or not at all.

    Raises:
        GlinthawkError: the file cannot be written.
    """
    identity = sidecar.identity
    document: dict[str, Any] = {
        "format": _FORMAT,
        "digest": identity.digest,
        "input_sha256": identity.input_sha256,
        "model_digest": identity.model_digest,
        "parameters": dict(identity.parameters),
        "epoch": sidecar.epoch,
    }
    if sidecar.remote is not None:
        document["remote"] = asdict(sidecar.remote)
    temporary = path.with_name(path.name + ".new")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            json.dump(document, file, indent=2)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise GlinthawkError(
            f"{path} cannot be written: {error.strerror}; free space or check permissions"
        ) from error


def describe_difference(old: RunIdentity, new: RunIdentity) -> str | None:
    """Say in words what differs between two runs; None if nothing does."""
    if old.input_sha256 != new.input_sha256:
        return "another input file (its content differs)"
    if old.is_remote != new.is_remote:
        return "a run at a gateway" if old.is_remote else "a run without a gateway"
    if old.model_digest != new.model_digest:
        return f"another model (digest {old.model_digest}, now {new.model_digest})"
    for name in sorted({*old.parameters, *new.parameters}):
        before, now = old.parameters.get(name), new.parameters.get(name)
        if before != now or (name in old.parameters) != (name in new.parameters):
            return f"another {name} ({before}, now {now})"
    return None


def _parse(document: Any, path: Path) -> Sidecar:
    version = document.get("format") if isinstance(document, dict) else None
    if version != _FORMAT:
        raise InvalidConfig(
            f"{path} has format {version!r}, this version reads {_FORMAT}; start with --overwrite"
        )
    try:
        identity = RunIdentity(
            input_sha256=str(document["input_sha256"]),
            model_digest=str(document["model_digest"]),
            parameters=dict(document["parameters"]),
        )
        epoch = int(document["epoch"])
        remote = RemoteRun(**document["remote"]) if "remote" in document else None
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidConfig(f"{path} is damaged; start with --overwrite") from error
    return Sidecar(identity, epoch, remote)


def _sync_folder(folder: Path) -> None:
    """Make a new name in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
