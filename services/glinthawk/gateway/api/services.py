"""What the API works with: its collaborators, frozen, each behind the narrowest face.

The API keeps nothing of its own between requests but who has how much open.
"""

import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from prometheus_client import CollectorRegistry

from glinthawk.config import GatewayConfig
from glinthawk.gateway.generation import Generation
from glinthawk.gateway.store.interface import Store


class Jobs(Protocol):
    """Who runs batches. Told after the store has changed; both return soon, raise nothing, and
    may be called from any thread and more than once."""

    def batch_created(self, batch_id: str) -> None:
        """A batch waits for its validation."""

    def batch_cancelled(self, batch_id: str) -> None:
        """A batch went to `cancelling`."""


class KeyChecker(Protocol):
    """Who knows the API keys. May be called from any thread."""

    def find(self, presented: str) -> str | None:
        """Return the name of the valid key that was presented, None if there is none."""


@dataclass(frozen=True)
class ApiLimits:
    """Bounds of what callers may send and have open. Tokens: of prompts and outputs together.
    Batches: that are not final."""

    max_body_bytes: int
    max_file_bytes: int
    max_key_requests: int
    max_key_tokens: int
    max_key_batches: int

    @staticmethod
    def of(config: GatewayConfig) -> "ApiLimits":
        """Return the limits that a gateway is configured with."""
        return ApiLimits(
            max_body_bytes=config.max_body_bytes,
            max_file_bytes=config.max_file_bytes,
            max_key_requests=config.max_key_requests,
            max_key_tokens=config.max_key_tokens,
            max_key_batches=config.max_key_batches,
        )


def _new_id() -> str:
    return uuid.uuid4().hex


@dataclass(frozen=True)
class ApiServices:
    """The collaborators of the API.

    keys: None where no keys are asked for. registry: what /metrics shows. clock: seconds since
    1970. new_id: returns hexadecimal digits that no earlier call returned. comment_every_s: how
    long a stream may be quiet before a comment keeps its connection alive.
    """

    generation: Generation
    store: Store
    jobs: Jobs
    keys: KeyChecker | None
    limits: ApiLimits
    model_names: tuple[str, ...]
    registry: CollectorRegistry
    clock: Callable[[], float] = time.time
    new_id: Callable[[], str] = _new_id
    comment_every_s: float = 15.0

    def now(self) -> int:
        """Return the whole seconds since 1970."""
        return int(self.clock())
