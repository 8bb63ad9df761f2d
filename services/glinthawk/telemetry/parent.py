"""Ends this process when the one that started it is gone, however it went."""

import ctypes
import os
import signal
import threading
import time

PARENT_VARIABLE = "GLINTHAWK_PARENT_PID"
"""Environment variable in which the starting process leaves its id, for the case that it is gone
before this one can ask who it was."""

_PR_SET_PDEATHSIG = 1
_CHECK_EVERY_S = 0.5
_GRACE_S = 5.0


def end_with_parent() -> None:
    """Arrange that this process gets SIGTERM, and is ended, once its parent is gone.

    Linux is asked for the signal; a thread also watches, for the parent may be gone already, and
    the signal is sent when the *thread* that started this process ends.
    """
    told = os.environ.get(PARENT_VARIABLE, "")
    parent = int(told) if told.isdecimal() else os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    threading.Thread(target=_watch, args=(parent,), name="parent-watch", daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_CHECK_EVERY_S)
    # Not a word first: stderr may be a pipe that the parent read, and writing to it would fail.
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_GRACE_S)
    os._exit(1)
