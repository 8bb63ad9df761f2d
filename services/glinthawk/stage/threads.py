"""Which threads torch computes on, on a CPU.

Where nothing spins, waking a thread takes longer than most operations between two products take
on one thread; and each such wake-up is one more point at which both threads wait for the slower
one. So what is small runs on the thread that calls (ADR 0014).
"""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TypeVar

import torch

T = TypeVar("T")

SMALL_ELEMENTS = 1 << 19
"""Operations on rows of up to so many elements in the residual run on one thread."""


@contextmanager
def _one_thread() -> Iterator[None]:
    """While it is entered, torch's operations on this thread wake no other.

    A thread that computes for the first time meanwhile has one thread too: only one computes.
    """
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)


def threads_for(x: torch.Tensor) -> AbstractContextManager[None]:
    """Return the context in which operations over tensors of about the size of x are to run."""
    is_small = x.device.type == "cpu" and x.numel() <= SMALL_ELEMENTS
    return _one_thread() if is_small else nullcontext()


def call_apart(function: Callable[[], T]) -> T:
    """Return what `function` returns on a thread that ends with it, or raise what it raises.

    OpenMP keeps the threads of every thread that computed and lives, counts them all, and waits
    worse once they are more than the cores: what is computed once is not to leave any behind.
    """
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(function())
        except BaseException as error:  # noqa: BLE001 - it is raised where the result is awaited
            future.set_exception(error)

    threading.Thread(target=run, name="apart", daemon=True).start()
    return future.result()
