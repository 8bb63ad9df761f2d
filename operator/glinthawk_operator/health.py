"""Small HTTP servers: /healthz for the kubelet, /metrics for Prometheus."""

import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from glinthawk_operator.errors import InvalidSettings

Page = Callable[[], tuple[int, str, bytes]]


class PageServer:
    """Serves pages by path until `close`. port 0 takes a free one."""

    def __init__(self, host: str, port: int, pages: dict[str, Page]) -> None:
        class Handler(BaseHTTPRequestHandler):
            timeout = 10

            def do_GET(self) -> None:
                page = pages.get(self.path.partition("?")[0])
                code, kind, content = (404, "text/plain", b"") if page is None else page()
                self.send_response(code)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, format: str, *args: object) -> None:
                """Probes come every few seconds; they are not told."""

        try:
            self._server = ThreadingHTTPServer((host, port), Handler)
        except OSError as error:
            raise InvalidSettings(
                f"cannot listen on {host} port {port}: {error}; choose a free port, or 0"
            ) from error
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        """The port it listens on."""
        return int(self._server.server_address[1])

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def health_page(is_alive: Callable[[], bool]) -> Page:
    """Return a page that is 200 while a thing is alive, 503 then."""

    def show() -> tuple[int, str, bytes]:
        return (200, "text/plain", b"ok\n") if is_alive() else (503, "text/plain", b"dead\n")

    return show


def metrics_page(registry: CollectorRegistry) -> Page:
    """Return the page of a registry's metrics."""
    return lambda: (200, CONTENT_TYPE_LATEST, generate_latest(registry))
