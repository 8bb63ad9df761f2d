"""What a reconcile can do. Each is one call, and doing it twice does no harm."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Manifest = Mapping[str, Any]


@dataclass(frozen=True)
class Create:
    """Make an object unless it is there."""

    manifest: Manifest


@dataclass(frozen=True)
class Apply:
    """Make an object say what the manifest says."""

    manifest: Manifest


@dataclass(frozen=True)
class Delete:
    """Delete an object of that uid. grace_s: None for its own, 0 for at once."""

    kind: str
    name: str
    uid: str
    grace_s: int | None = None


@dataclass(frozen=True)
class Annotate:
    """Set annotations of a pod of that uid; None removes one."""

    name: str
    uid: str
    annotations: Mapping[str, str | None]


@dataclass(frozen=True)
class Scale:
    """Write the replicas of the memory tier's Deployment."""

    name: str
    replicas: int


@dataclass(frozen=True)
class Drain:
    """Ask the gateway to drain a worker, whose sequences may run on for deadline_s."""

    worker: str
    deadline_s: float


@dataclass(frozen=True)
class CancelDrain:
    """Ask the gateway to take a drain back."""

    worker: str


@dataclass(frozen=True)
class Announce:
    """Write an Event about the resource.

    at_s: when it happened, in seconds since 1970, for what is told each time that it does; without
    it the same words are an Event once an hour.
    """

    reason: str
    message: str
    is_warning: bool = False
    at_s: float | None = None


Action = Create | Apply | Delete | Annotate | Scale | Drain | CancelDrain | Announce
