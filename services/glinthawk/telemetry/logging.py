"""Structured logs: an event name and fields, one line per change of state, on stderr.

Of an exception a line has the type and the place, never the text or variables: those may hold a
prompt.
"""

import logging
import sys
import traceback
from contextlib import suppress
from enum import StrEnum
from typing import TextIO, cast

import structlog
from structlog.typing import EventDict, FilteringBoundLogger, Processor, WrappedLogger

from glinthawk.errors import InvalidConfig

LEVELS = ("debug", "info", "warning", "error")
_MAX_FRAMES = 8


class LogFormat(StrEnum):
    """How a line looks: for machines or for people."""

    JSON = "json"
    CONSOLE = "console"


def configure_logging(
    level: str, log_format: str, *, role: str, name: str, stream: TextIO | None = None
) -> None:
    """Set up the process's logs; call it once, at the start.

    Args:
        level: ``debug``, ``info``, ``warning`` or ``error``.
        log_format: ``json`` or ``console``.
        role: of this process, such as ``stage``; in every line.
        name: of this process; in every line.
        stream: where to write, stderr if None.

    Raises:
        InvalidConfig: there is no such level or format.
    """
    if level not in LEVELS:
        raise InvalidConfig(f"log level {level!r} is not one of {', '.join(LEVELS)}")
    if log_format not in list(LogFormat):
        raise InvalidConfig(f"log format {log_format!r} is not one of {', '.join(LogFormat)}")
    output = sys.stderr if stream is None else stream
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _identify(role, name),
            _place_exception,
            *_build_renderers(LogFormat(log_format), output),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.PrintLoggerFactory(cast(TextIO, _Sink(output))),
        cache_logger_on_first_use=False,
    )


def get_logger(component: str) -> FilteringBoundLogger:
    """Return the logger of a part of a process, such as ``stage.loop``.

    It may be made before `configure_logging` is called, and follows it.
    """
    logger: FilteringBoundLogger = structlog.get_logger(component=component)
    return logger


def describe_exception(error: BaseException) -> tuple[str, list[str]]:
    """Return an exception's type, and the places that it came through, innermost last."""
    frames = traceback.extract_tb(error.__traceback__)[-_MAX_FRAMES:]
    return type(error).__name__, [
        f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames
    ]


class _Sink:
    """Where lines go. One that cannot be written, as the disk is full or nobody reads any more, is
    dropped: a process must not fail, or stop half way through a change of state, for its log."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with suppress(OSError, ValueError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            self._stream.flush()


def _place_exception(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    error = event.pop("exc_info", None)
    if isinstance(error, BaseException):
        event["defect"], event["where"] = describe_exception(error)
    return event


def _identify(role: str, name: str) -> Processor:
    def add_identity(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
        event.setdefault("role", role)
        event.setdefault("process", name)
        return event

    return add_identity


def _build_renderers(log_format: LogFormat, output: TextIO) -> list[Processor]:
    if log_format is LogFormat.CONSOLE:
        return [structlog.dev.ConsoleRenderer(colors=output.isatty())]
    return [structlog.processors.JSONRenderer()]
