"""The control API of a gateway, as commands speak to it: see control.py for what is there.

Errors of HTTP and of the network become ours here. It must not know how anything is shown.
"""

from typing import Any
from urllib.parse import quote

import httpx

from glinthawk.errors import (
    GlinthawkError,
    InvalidRequest,
    InvariantBroken,
    NotFound,
    PeerUnavailable,
    Unauthenticated,
)

TIMEOUT_S = 10.0

DIRECT: dict[str, httpx.BaseTransport | None] = {
    f"all://{host}": None for host in ("127.0.0.1", "localhost", "[::1]")
}
"""Hosts that no proxy of the environment stands before."""

_KINDS: dict[int, type[GlinthawkError]] = {
    400: InvalidRequest,
    401: Unauthenticated,
    404: NotFound,
    503: PeerUnavailable,
}


class ControlClient:
    """Asks one gateway.

    url: of its control API. secret: the cluster's shared secret, None where none is asked for.
    """

    def __init__(self, url: str, *, secret: str | None = None) -> None:
        self._url = url
        headers = {} if secret is None else {"authorization": f"Bearer {secret}"}
        self._client = httpx.Client(base_url=url, headers=headers, timeout=TIMEOUT_S, mounts=DIRECT)

    def __enter__(self) -> "ControlClient":
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def inspect(self) -> dict[str, Any]:
        """Return how the gateway stands: `inspection.Inspection` as JSON.

        Raises:
            PeerUnavailable: nobody answers.
            Unauthenticated: the secret is missing or wrong.
        """
        document = self._call("GET", "/v1/inspection").json()
        if not isinstance(document, dict) or "is_ready" not in document:
            raise InvariantBroken(f"{self._url} does not answer like a gateway's control API")
        return document

    def drain(self, worker: str, deadline_s: float) -> None:
        """Begin to drain a worker; raises as `inspect`, and NotFound if there is none."""
        self._call("PUT", _drain_path(worker), {"deadline_s": deadline_s})

    def cancel_drain(self, worker: str) -> None:
        """Take a drain back; raises as `drain`."""
        self._call("DELETE", _drain_path(worker))

    def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> httpx.Response:
        try:
            answer = self._client.request(method, path, json=body)
        except httpx.HTTPError as error:
            raise PeerUnavailable(
                f"no gateway answers at {self._url}: {error or type(error).__name__}; check that "
                "it runs, and that --control names its control port"
            ) from error
        if answer.is_success:
            return answer
        raise _KINDS.get(answer.status_code, InvariantBroken)(
            f"{self._url}: {read_error_message(answer)}"
        )


def read_error_message(answer: httpx.Response) -> str:
    """Return what an answer that is no success says, in OpenAI's form or any other."""
    try:
        return str(answer.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"status {answer.status_code} {answer.reason_phrase}: {answer.text[:200]}"


def _drain_path(worker: str) -> str:
    return f"/v1/workers/{quote(worker, safe='')}/drain"
