"""Threads that end by a defect: each is logged, and its process can end with a message.

Without it such a thread is gone, its last words are a traceback that may hold a prompt, and the
process goes on without what the thread did.
"""

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

from glinthawk.errors import InvariantBroken
from glinthawk.telemetry.logging import get_logger

log = get_logger("telemetry")


class ThreadDefects:
    """Takes note of what ends threads of this process, from entering the context to leaving it.

    failure: the first that there was, None while there is none.

    Args:
        on_failure: told of the first, on the thread that ends.
    """

    def __init__(self, on_failure: Callable[[InvariantBroken], None] | None = None) -> None:
        self.failure: InvariantBroken | None = None
        self._on_failure = on_failure
        self._former = threading.excepthook

    def __enter__(self) -> Self:
        self._former = threading.excepthook
        threading.excepthook = self._note
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        threading.excepthook = self._former

    def check(self) -> None:
        """Look whether a thread has ended by a defect.

        Raises:
            InvariantBroken: one has; the message names it.
        """
        if self.failure is not None:
            raise self.failure

    def _note(self, args: threading.ExceptHookArgs) -> None:
        if issubclass(args.exc_type, SystemExit):
            return
        name = "?" if args.thread is None else args.thread.name
        failure = InvariantBroken(
            f"a defect in thread {name!r} ({args.exc_type.__name__}); the log says where"
        )
        is_first = self.failure is None
        self.failure = self.failure or failure
        log.error("thread_defect", thread=name, exc_info=args.exc_value)
        if is_first and self._on_failure is not None:
            self._on_failure(failure)
