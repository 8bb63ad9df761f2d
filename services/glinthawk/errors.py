"""The errors of Glinthawk, in one tree.

    GlinthawkError
    |-- InvalidRequest      the caller's fault          INVALID_ARGUMENT     400
    |   `-- UnsupportedModel  an architecture or option we do not compute
    |-- InvalidConfig       a process was started wrongly            (exit code 2)
    |-- NotFound            no such thing               NOT_FOUND            404
    |-- Unauthenticated     no or a wrong credential    UNAUTHENTICATED      401
    |-- CapacityExceeded    full now, try later         RESOURCE_EXHAUSTED   429
    |-- PeerUnavailable     this peer is away           UNAVAILABLE          503
    |-- StoreUnavailable    disk full, store locked     UNAVAILABLE          503
    |-- StateLost           the KV is gone, recompute   FAILED_PRECONDITION  (internal)
    `-- InvariantBroken     a defect of ours            INTERNAL             500

A message says what happened, the actual value, the limit, and what to do next. Foreign
errors are translated into this tree once, at the boundary that meets them.
"""


class GlinthawkError(Exception):
    """Base of every error that Glinthawk raises on purpose."""


class InvalidRequest(GlinthawkError):
    """The caller asked for something that can never succeed as asked.

    Args:
        message: what is wrong, with the value, the limit and the way out.
        param: name of the request field at fault, as OpenAI's error object has it.
    """

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class UnsupportedModel(InvalidRequest):
    """A model, or an option of one, that Glinthawk would compute wrongly."""


class InvalidConfig(GlinthawkError):
    """A process cannot start with the configuration it was given."""


class NotFound(GlinthawkError):
    """The thing named does not exist."""


class Unauthenticated(GlinthawkError):
    """The credential is missing or wrong."""


class CapacityExceeded(GlinthawkError):
    """There is no room now; the same call may succeed later."""


class PeerUnavailable(GlinthawkError):
    """Another process does not answer, or went away."""


class StoreUnavailable(GlinthawkError):
    """Files, jobs and results cannot be read or kept now; nothing was changed.

    Args:
        message: why, and what to do.
        is_full: whether the volume has no room.
    """

    def __init__(self, message: str, *, is_full: bool = False) -> None:
        super().__init__(message)
        self.is_full = is_full


class StateLost(GlinthawkError):
    """KV that a step needs is not there any more; the sequence must be prefilled again."""


class InvariantBroken(GlinthawkError):
    """A promise of our own code does not hold."""
