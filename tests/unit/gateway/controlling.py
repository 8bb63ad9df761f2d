"""A gateway's control API on a real socket, whose answers the test decides."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fastapi import FastAPI
from rich.console import Console

from glinthawk.errors import NotFound
from glinthawk.gateway.control import build_control_app
from glinthawk.gateway.control_client import ControlClient
from glinthawk.gateway.http.server import HttpServer
from glinthawk.gateway.inspection import Inspection

EMPTY = Inspection("0.1.0", 2, "tiny", is_ready=False, num_stages=2)


class Operations:
    """A gateway's answers, in turn; the last one for ever."""

    def __init__(self, *inspections: Inspection) -> None:
        self.inspections = list(inspections)
        self.drains: dict[str, float] = {}

    def inspect(self) -> dict[str, Any]:
        inspections = self.inspections
        return (inspections.pop(0) if len(inspections) > 1 else inspections[0]).to_document()

    def drain(self, worker: str, deadline_s: float) -> None:
        if worker == "none":
            raise NotFound("there is no attention worker 'none'")
        self.drains[worker] = deadline_s

    def cancel_drain(self, worker: str) -> None:
        del self.drains[worker]


@contextmanager
def serve(app: FastAPI) -> Iterator[str]:
    server = HttpServer(app, "127.0.0.1", 0)
    server.start()
    try:
        yield f"http://127.0.0.1:{server.port}"
    finally:
        server.stop(1.0)


@contextmanager
def connect(operations: Operations, secret: str | None = None) -> Iterator[ControlClient]:
    app = build_control_app(operations, secret)  # type: ignore[arg-type]
    with serve(app) as url, ControlClient(url, secret=secret) as client:
        yield client


def make_console() -> Console:
    return Console(file=io.StringIO(), width=160)


def read(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()
