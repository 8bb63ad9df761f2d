"""The engine as its doors see it: submit a request, hear of it, give it up.

The HTTP API, gRPC and the jobs all come through here, so that a request is the same whichever
door it took. An engine has one place to which every finished request goes; here each finds the
one who asked.
"""

import threading
from collections.abc import Callable, Hashable

from glinthawk.gateway.conversation import Listener
from glinthawk.gateway.engine import Completion, Engine
from glinthawk.gateway.requests import ModelContext, ParsedRequest
from glinthawk.scheduler import Flow

OnDone = Callable[[Completion], None]
"""Told once when a request ends; called in the engine's thread, must not block."""


INTERACTIVE = Flow("interactive", 8.0)
"""Requests of callers who wait for the answer."""


class Generation:
    """One engine for many callers. Its methods may be called from any thread."""

    def __init__(self, context: ModelContext, *, run_seed: int) -> None:
        self.context = context
        self.run_seed = run_seed
        self._engine: Engine | None = None
        self._lock = threading.Lock()
        self._callers: dict[Hashable, OnDone] = {}

    def attach(self, engine: Engine) -> None:
        """Connect the engine, whose `on_done` is this object's `finish`."""
        self._engine = engine

    @property
    def is_ready(self) -> bool:
        """Whether a token can be generated now."""
        return self._engine is not None and self._engine.failure is None

    def submit(
        self,
        key: Hashable,
        request: ParsedRequest,
        on_done: OnDone,
        *,
        flow: Flow = INTERACTIVE,
        listener: Listener | None = None,
    ) -> None:
        """Queue a request under a key that no other open request has."""
        assert self._engine is not None, "the engine is attached before a door opens"
        with self._lock:
            assert key not in self._callers, f"request {key!r} is open already"
            self._callers[key] = on_done
        self._engine.submit(key, request, listener, flow)

    def cancel(self, key: Hashable) -> None:
        """Give a request up: its KV is freed, and nobody is told."""
        assert self._engine is not None, "the engine is attached before a door opens"
        with self._lock:
            is_open = self._callers.pop(key, None) is not None
        if is_open:
            self._engine.cancel(key)

    def finish(self, completion: Completion) -> None:
        """Hand a finished request to its caller; one that was given up meanwhile is dropped."""
        with self._lock:
            on_done = self._callers.pop(completion.key, None)
        if on_done is not None:
            on_done(completion)
