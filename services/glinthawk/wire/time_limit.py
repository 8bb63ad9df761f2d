"""A bound on how long a thread may wait for a peer, where the wait itself takes none."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def cut_off_after(seconds: float, cut_off: Callable[[], object]) -> Iterator[None]:
    """Call `cut_off` if the block takes longer: what it ends, such as a call or a connection,
    wakes the thread that waits for it."""
    timer = threading.Timer(seconds, cut_off)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
