"""What `glinthawk drain` does: begin a drain, and follow it until the worker may be deleted."""

import time
from collections.abc import Callable
from typing import Any

from rich.console import Console

from glinthawk.errors import GlinthawkError
from glinthawk.gateway.control_client import ControlClient

DEADLINE_S = 300.0
POLL_S = 0.5

GRACE_S = 15.0
"""How long after its deadline a drain may still be under way: figures lag behind a little."""


def begin_drain(client: ControlClient, worker: str, deadline_s: float, console: Console) -> None:
    """Have nothing more placed on a worker.

    Raises:
        NotFound: there is no such worker.
        PeerUnavailable: the gateway does not answer, or has no stages yet.
    """
    client.drain(worker, deadline_s)
    console.print(
        f"{worker} drains: what would not end there in {deadline_s:g} s goes on elsewhere",
        highlight=False,
    )


def follow_drain(
    client: ControlClient,
    worker: str,
    deadline_s: float,
    console: Console,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Wait until a worker is drained.

    Raises:
        GlinthawkError: it was lost, the drain was taken back, or the time is over.
    """
    until = clock() + deadline_s + GRACE_S
    was_draining = False
    while True:
        found = _find_worker(client, worker)
        state = None if found is None else found["state"]
        if state == "drained":
            console.print(f"{worker} is drained; it may be deleted", highlight=False)
            return
        if found is None or state == "lost":
            raise GlinthawkError(
                f"{worker} was lost before it was drained; what it held is computed again elsewhere"
            )
        if state == "draining":
            was_draining = True
        elif was_draining:
            raise GlinthawkError(f"the drain of {worker} was taken back by somebody else")
        if clock() >= until:
            raise GlinthawkError(
                f"{worker} is {state} with {found['num_sequences']} sequences after "
                f"{deadline_s:g} s; see glinthawk status, and the gateway's log"
            )
        sleep(POLL_S)


def _find_worker(client: ControlClient, name: str) -> dict[str, Any] | None:
    workers: list[dict[str, Any]] = client.inspect()["workers"]
    return next((worker for worker in workers if worker["name"] == name), None)
