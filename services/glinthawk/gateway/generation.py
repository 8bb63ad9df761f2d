"""The engine as its doors see it: submit a request, hear of it, give it up.

The HTTP API, gRPC and the jobs all come through here, so that a request is the same whichever
door it took. An engine has one place to which every finished request goes; here each finds the
one who asked.
"""

import threading
from collections.abc import Callable, Hashable

from glinthawk.errors import PeerUnavailable
from glinthawk.gateway.conversation import Listener
from glinthawk.gateway.engine import Completion, Engine
from glinthawk.gateway.requests import ModelContext, ParsedRequest
from glinthawk.scheduler import Flow, RequestClass

OnDone = Callable[[Completion], None]
"""Told once when a request ends; called in the engine's thread, must not block."""


INTERACTIVE = Flow("interactive", 8.0, RequestClass.INTERACTIVE)
"""Requests of callers who wait for the answer."""


class Generation:
    """One engine for many callers. Its methods may be called from any thread."""

    def __init__(self, context: ModelContext, *, run_seed: int) -> None:
        self.context = context
        self.run_seed = run_seed
        self._engine: Engine | None = None
        self._is_whole: Callable[[], bool] = lambda: False
        self._lock = threading.Lock()
        self._callers: dict[Hashable, OnDone] = {}

    def attach(self, engine: Engine, is_whole: Callable[[], bool] = lambda: True) -> None:
        """Connect the engine, whose `on_done` is this object's `finish`. is_whole: says
        whether its tiers are there."""
        self._is_whole = is_whole
        self._engine = engine

    @property
    def is_ready(self) -> bool:
        """Whether a token can be generated now."""
        return self._engine is not None and self._engine.failure is None and self._is_whole()

    def submit(
        self,
        key: Hashable,
        request: ParsedRequest,
        on_done: OnDone,
        *,
        flow: Flow = INTERACTIVE,
        listener: Listener | None = None,
    ) -> None:
        """Queue a request under a key that no other open request has.

        Raises:
            PeerUnavailable: the stages were not there yet.
        """
        if self._engine is None:
            raise PeerUnavailable("the stages of the model are not there yet; try again later")
        with self._lock:
            assert key not in self._callers, f"request {key!r} is open already"
            self._callers[key] = on_done
        self._engine.submit(key, request, listener, flow)

    def cancel(self, key: Hashable) -> None:
        """Give a request up: its KV is freed, and nobody is told."""
        with self._lock:
            is_open = self._callers.pop(key, None) is not None
        if is_open and self._engine is not None:
            self._engine.cancel(key)

    def finish(self, completion: Completion) -> None:
        """Hand a finished request to its caller; one that was given up meanwhile is dropped."""
        with self._lock:
            on_done = self._callers.pop(completion.key, None)
        if on_done is not None:
            on_done(completion)
