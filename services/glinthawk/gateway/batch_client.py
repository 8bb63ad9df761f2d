"""Files and batches of a gateway, as a client has them over HTTP: any that speaks OpenAI's API.

What may succeed when it is tried again is tried again here, for as long as the caller has
patience; what is final becomes an error of ours. It must not know what a batch is for.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any

import httpx

from glinthawk.errors import (
    GlinthawkError,
    InvalidConfig,
    InvalidRequest,
    NotFound,
    PeerUnavailable,
    Unauthenticated,
)
from glinthawk.gateway.control_client import DIRECT, read_error_message

MARK = "glinthawk_run"
"""Key in a batch's metadata that names the run which made it."""

_TIMEOUT = httpx.Timeout(60.0, connect=10.0)
_UPLOAD_TIMEOUT = httpx.Timeout(600.0, connect=10.0)
"""The answer comes when all of the file is on the gateway's disk."""

_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 15.0
_PAGE = 100
_MOST_PAGES = 20
_PIECE_BYTES = 1 << 20
_TRY_AGAIN = (
    HTTPStatus.TOO_MANY_REQUESTS,
    HTTPStatus.BAD_GATEWAY,
    HTTPStatus.SERVICE_UNAVAILABLE,
    HTTPStatus.GATEWAY_TIMEOUT,
)

Send = Callable[[], httpx.Response]


class BatchClient:
    """Speaks to one gateway.

    url: without /v1. api_key: None where none is asked for. patience_s: how long the gateway may
    be away, or full, before a call fails.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None,
        patience_s: float,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.url = url
        self._patience_s = patience_s
        self._clock = clock
        self._sleep = sleep
        headers = {} if api_key is None else {"authorization": f"Bearer {api_key}"}
        self._client = httpx.Client(base_url=url, headers=headers, timeout=_TIMEOUT, mounts=DIRECT)

    def __enter__(self) -> "BatchClient":
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def upload(self, path: Path) -> str:
        """Send a batch file, and return its id.

        Raises:
            GlinthawkError: see `get_batch`.
        """

        def send() -> httpx.Response:
            with path.open("rb") as file:
                return self._client.post(
                    "/v1/files",
                    data={"purpose": "batch"},
                    files={"file": (path.name, file, "application/jsonl")},
                    timeout=_UPLOAD_TIMEOUT,
                )

        return str(self._call(send)["id"])

    def create_batch(self, body: dict[str, Any], mark: str) -> dict[str, Any]:
        """Return a new batch, or the one with this mark if an attempt that broke has made it,
        also if that is still under way: the mark is its idempotency key.

        Raises:
            GlinthawkError: see `get_batch`.
        """
        is_first = True

        def send() -> httpx.Response:
            nonlocal is_first
            if not is_first and (found := self._find(mark)) is not None:
                return httpx.Response(HTTPStatus.OK, json=found)
            is_first = False
            return self._client.post(
                "/v1/batches",
                json=body | {"metadata": {MARK: mark}},
                headers={"idempotency-key": mark},
            )

        return self._call(send)

    def find_batch(self, mark: str) -> dict[str, Any] | None:
        """Return the batch that was made with this mark, None if there is none among the newest.

        Raises:
            GlinthawkError: see `get_batch`.
        """
        found: list[dict[str, Any] | None] = [None]

        def send() -> httpx.Response:
            found[0] = self._find(mark)
            return httpx.Response(HTTPStatus.OK, json={})

        self._call(send)
        return found[0]

    def get_batch(self, batch_id: str) -> dict[str, Any]:
        """Return a batch as it stands.

        Raises:
            Unauthenticated: the key is missing or not valid.
            NotFound: there is no such batch.
            InvalidRequest: the gateway refuses the call.
            PeerUnavailable: it did not answer, or was full, for too long.
        """
        return self._call(lambda: self._client.get(f"/v1/batches/{batch_id}"))

    @contextmanager
    def open_file(self, file_id: str) -> Iterator[Iterator[bytes]]:
        """Open the content of a file, which comes in pieces.

        Raises:
            NotFound, Unauthenticated: as `get_batch`.
            PeerUnavailable: the gateway does not answer, or broke off; it can be tried again.
        """
        try:
            with self._client.stream("GET", f"/v1/files/{file_id}/content") as answer:
                if not answer.is_success:
                    answer.read()
                    raise self._translate(answer)
                yield answer.iter_bytes(_PIECE_BYTES)
        except httpx.HTTPError as error:
            raise PeerUnavailable(
                f"{self.url} broke off while file {file_id} was fetched: {_describe(error)}"
            ) from error

    def _find(self, mark: str) -> dict[str, Any] | None:
        after: dict[str, str] = {}
        for _ in range(_MOST_PAGES):
            answer = self._client.get("/v1/batches", params={"limit": _PAGE, **after})
            if not answer.is_success:
                raise _Refused(answer)
            page = answer.json()
            for batch in page["data"]:
                if (batch["metadata"] or {}).get(MARK) == mark:
                    return dict(batch)
            if not page["has_more"]:
                return None
            after = {"after": page["data"][-1]["id"]}
        return None

    def _call(self, send: Send) -> dict[str, Any]:
        """Send until there is an answer that counts, or patience is over."""
        until = self._clock() + self._patience_s
        pause_s = _FIRST_PAUSE_S
        while True:
            wait_s = pause_s
            try:
                answer = send()
            except _Refused as refused:
                answer = refused.answer
            except httpx.HTTPError as error:
                failure: GlinthawkError = PeerUnavailable(
                    f"no gateway answers at {self.url}: {_describe(error)}; the same command "
                    "goes on when it does"
                )
                answer = None
            if answer is not None:
                if answer.is_success:
                    return _read_object(answer, self.url)
                failure = self._translate(answer)
                if answer.status_code not in _TRY_AGAIN:
                    raise failure
                wait_s = max(pause_s, _read_retry_after(answer))
            if self._clock() + wait_s > until:
                raise failure
            self._sleep(wait_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def _translate(self, answer: httpx.Response) -> GlinthawkError:
        message = f"{self.url}: {read_error_message(answer)}"
        status = answer.status_code
        if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            return Unauthenticated(
                f"{message}; give the key by --api-key-file, or as GLINTHAWK_API_KEY"
            )
        if status == HTTPStatus.NOT_FOUND:
            return NotFound(message)
        if status in _TRY_AGAIN or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            return PeerUnavailable(message)
        return InvalidRequest(message)


class _Refused(Exception):
    """A call within a call was answered, but not with what was asked for."""

    def __init__(self, answer: httpx.Response) -> None:
        super().__init__(answer.status_code)
        self.answer = answer


def _read_retry_after(answer: httpx.Response) -> float:
    text = answer.headers.get("retry-after", "")
    return float(text) if text.isdecimal() else 0.0


def _read_object(answer: httpx.Response, url: str) -> dict[str, Any]:
    try:
        document = answer.json()
    except ValueError as error:
        raise InvalidConfig(f"{url} does not answer like a gateway; check --gateway") from error
    if not isinstance(document, dict):
        raise InvalidConfig(f"{url} does not answer like a gateway; check --gateway")
    return document


def _describe(error: httpx.HTTPError) -> str:
    return str(error) or type(error).__name__
