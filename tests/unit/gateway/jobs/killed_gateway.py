"""A gateway to be killed: `python -m unit.gateway.jobs.killed_gateway FOLDER BATCH [STATUS N]`.

It works on what is in its folder, and ends when the batch has ended. With STATUS and N it says
when it begins its N-th write to the store while the batch has that status, and begins no other
write after that one: whoever kills it then finds it there, however late.
"""

import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from glinthawk.gateway.store.records import BatchStatus
from glinthawk.gateway.store.sql import SqlStore, open_store
from glinthawk.telemetry.logging import configure_logging
from glinthawk.telemetry.parent import end_with_parent
from unit.gateway.jobs.factories import Gateway, make_settings

READ_AHEAD = 12
WRITES = ("add_lines", "add_results", "update_batch", "add_file", "drop_lines")


class Reins:
    """Lets a store write so often, within one part of a batch's life, and no more."""

    def __init__(self, store: SqlStore, batch_id: str, status: BatchStatus, number: int) -> None:
        self._read_status = lambda: store.get_batch(batch_id).status
        self._status = status
        self._num_left = number
        self._lock = threading.Lock()
        for name in WRITES:
            setattr(store, name, self._guard(getattr(store, name)))

    def _guard(self, write: Callable[..., Any]) -> Callable[..., Any]:
        def guarded(*arguments: Any, **fields: Any) -> Any:
            with self._lock:
                self._count()
            return write(*arguments, **fields)

        return guarded

    def _count(self) -> None:
        if self._num_left == 0:
            threading.Event().wait()  # until it is killed
        if self._read_status() is self._status:
            self._num_left -= 1
            if self._num_left == 0:
                print("here", flush=True)


def run(folder: Path, batch_id: str, *moment: str) -> None:
    store = open_store(folder)
    if moment:
        Reins(store, batch_id, BatchStatus(moment[0]), int(moment[1]))
    settings = make_settings(read_ahead=READ_AHEAD)
    with Gateway(folder, step_s=0.005, settings=settings, store=store):
        while not store.get_batch(batch_id).status.is_final:
            time.sleep(0.01)


if __name__ == "__main__":
    end_with_parent()
    configure_logging("error", "console", role="gateway", name="killed")
    run(Path(sys.argv[1]), *sys.argv[2:])
