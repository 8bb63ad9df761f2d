"""What operators may ask of a gateway, whichever door they come through."""

from typing import Any

from glinthawk.errors import PeerUnavailable
from glinthawk.gateway.drain_book import DrainBook
from glinthawk.gateway.engine import Engine
from glinthawk.gateway.inspection import Inspector

DEFAULT_DEADLINE_S = 300.0
MAX_DEADLINE_S = 7 * 24 * 3600.0


class Operations:
    """What can be asked of a gateway beside generating. Any thread may."""

    def __init__(self, inspector: Inspector, drains: DrainBook) -> None:
        self._inspector = inspector
        self._drains = drains
        self._engine: Engine | None = None

    def attach(self, engine: Engine) -> None:
        """Act on an engine from now on."""
        self._engine = engine

    def inspect(self) -> dict[str, Any]:
        """Return how the gateway stands, as JSON can hold it."""
        return self._inspector.inspect().to_document()

    def drain(self, worker: str, deadline_s: float) -> None:
        """Begin to drain a worker; a gateway that is started again goes on with it.

        Raises:
            NotFound: there is no such worker.
            PeerUnavailable: the stages were not there yet.
            StoreUnavailable: it cannot be kept; the worker does not drain.
        """
        engine = self._require_engine()
        self._drains.note(worker, engine.find_worker(worker).instance, deadline_s)
        engine.drain(worker, deadline_s)

    def cancel_drain(self, worker: str) -> None:
        """Take a drain back; raises as `drain`."""
        engine = self._require_engine()
        engine.find_worker(worker)
        self._drains.forget(worker)
        engine.cancel_drain(worker)

    def _require_engine(self) -> Engine:
        if self._engine is None:
            raise PeerUnavailable("the stages of the model are not there yet; try again later")
        return self._engine
