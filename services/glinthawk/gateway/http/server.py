"""The HTTP server: uvicorn in a thread with an event loop of its own.

It owns the socket and nothing else. Signals stay with the process: who started the server stops
it.
"""

import logging
import socket
import ssl
import threading
import time
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from glinthawk.errors import InvalidConfig
from glinthawk.gateway.http.protocol import Protocol

_START_TIMEOUT_S = 30.0
_POLL_S = 0.01
_GRACE_S = 1.0
"""How long the server, which has cut its calls off, is waited for."""

_BACKLOG = 2048

_KEEP_ALIVE_S = 75
"""Longer than clients keep an idle connection: who closes it first must not be the server, or a
request that is on its way then is lost."""

_PROBES = {socket.TCP_KEEPIDLE: 30, socket.TCP_KEEPINTVL: 10, socket.TCP_KEEPCNT: 3}
"""Seconds of silence before a connection is probed, between probes, and probes in vain."""


class HttpServer:
    """Serves an application on one address, from `start` to `stop`. Port 0 takes a free one.

    certificate, key: PEM files; both or none. option: which sets the port, for messages. port:
    the one it listens on.
    """

    def __init__(
        self,
        app: FastAPI,
        host: str,
        port: int,
        *,
        certificate: Path | None = None,
        key: Path | None = None,
        option: str = "--port",
    ) -> None:
        self._config = uvicorn.Config(
            app,
            loop="asyncio",
            http=Protocol,
            ws="none",
            lifespan="off",
            log_config=None,
            # The application logs its own failures; uvicorn's lines could show what a caller sent.
            log_level=logging.CRITICAL,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            backlog=_BACKLOG,
            timeout_keep_alive=_KEEP_ALIVE_S,
            ssl_certfile=certificate,
            ssl_keyfile=key,
        )
        try:
            self._config.load()
        except (OSError, ssl.SSLError) as error:
            raise InvalidConfig(
                f"certificate {certificate} and key {key} cannot be used: {error}"
            ) from error
        self._socket = _listen(host, port, option)
        self.port = int(self._socket.getsockname()[1])
        self._server = uvicorn.Server(self._config)
        self._thread = threading.Thread(target=self._run, name="http", daemon=True)

    def start(self) -> None:
        """Begin to serve; returns once calls are answered."""
        self._thread.start()
        deadline = time.monotonic() + _START_TIMEOUT_S
        while not self._server.started:
            if not self._thread.is_alive() or time.monotonic() > deadline:
                raise InvalidConfig(f"the HTTP server on port {self.port} did not start")
            time.sleep(_POLL_S)

    def stop(self, timeout_s: float) -> None:
        """Take no new calls, let those that are open end within `timeout_s`, then cut them off."""
        self._config.timeout_graceful_shutdown = max(1, round(timeout_s))
        self._server.should_exit = True
        if self._thread.is_alive():
            self._thread.join(timeout_s + _GRACE_S)
        self._socket.close()

    def _run(self) -> None:
        self._server.run(sockets=[self._socket])


def _listen(host: str, port: int, option: str) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise InvalidConfig(
            f"cannot listen on {host} port {port} for HTTP: {error}; give {option} a free port, "
            "or 0"
        ) from error
    # Connections inherit these: a client whose machine is gone counts as one that hung up.
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for probe, value in _PROBES.items():
        listening.setsockopt(socket.IPPROTO_TCP, probe, value)
    return listening
