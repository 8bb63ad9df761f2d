"""Structured logs: an event name and fields, one line per change of state, on stderr.

Lines of libraries that log in Python's way go the same way.
"""

import logging
import sys

import structlog
from structlog.typing import FilteringBoundLogger, Processor


def configure_logging(level: str, log_format: str) -> None:
    """Set up the process's logs; call it once, at the start."""
    number = logging.getLevelNamesMapping()[level.upper()]
    shared: list[Processor] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    renderer: Processor = (
        structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
        if log_format == "console"
        else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[*shared, structlog.processors.format_exc_info, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                renderer,
            ],
        )
    )
    logging.root.handlers[:] = [handler]
    # Libraries tell each event that they handle; only their troubles are wanted.
    logging.root.setLevel(max(number, logging.WARNING))


def get_logger(component: str) -> FilteringBoundLogger:
    """Return the logger of a part of the operator."""
    logger: FilteringBoundLogger = structlog.get_logger(component=component)
    return logger
