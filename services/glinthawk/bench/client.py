"""The API as a benchmark calls it: the standard library's HTTP, one connection a call.

It is no client for users, who have OpenAI's. It tells calls that may be made again, because the
gateway was away, from those that must not fail.
"""

import json
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException, HTTPResponse
from typing import Any, TypeVar

from glinthawk.errors import GlinthawkError, PeerUnavailable

CALL_S = 60.0
_AGAIN_S = 0.1
_AWAY = (HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.TOO_MANY_REQUESTS)
FINAL = ("completed", "failed", "expired", "cancelled")

Found = TypeVar("Found")


class CallFailed(GlinthawkError):
    """The API answered with an error where there should be none."""


@dataclass(frozen=True)
class StreamFigures:
    """A stream that was read to its end. tokens: completion tokens, as its usage says."""

    first_token_s: float
    total_s: float
    tokens: int


class ApiClient:
    """Calls one gateway's API, or its control API. Several threads may use it.

    Args:
        port: on the loopback interface.
        timeout_s: longest silence of an answer.
    """

    def __init__(self, port: int, *, timeout_s: float = CALL_S) -> None:
        self._port = port
        self._timeout_s = timeout_s

    # --- generating

    def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        """Return the answer of /v1/completions; raises as every call here."""
        return self._post_json("/v1/completions", body)

    def stream(self, path: str, body: dict[str, Any]) -> StreamFigures:
        """Read a stream to its end.

        Raises:
            PeerUnavailable: the gateway is away, or went away.
            CallFailed: it answered with an error, also within the stream.
        """
        options = {"stream": True, "stream_options": {"include_usage": True}}
        began = time.monotonic()
        first_s: float | None = None
        last, is_ended = b"", False
        with self._open("POST", path, json.dumps(body | options).encode()) as answer:
            for line in _read_lines(answer):
                if not line.startswith(b"data: "):
                    continue
                first_s = first_s or time.monotonic() - began
                if line.startswith(b"data: [DONE]"):
                    is_ended = True
                    break
                last = line
        usage = json.loads(last.removeprefix(b"data: ") or b"{}").get("usage")
        if not is_ended or usage is None or first_s is None:
            raise CallFailed(f"a stream of {path} ended early; its last event: {last[:500]!r}")
        return StreamFigures(first_s, time.monotonic() - began, usage["completion_tokens"])

    def follow(self, path: str, body: dict[str, Any], on_event: Callable[[], bool]) -> None:
        """Read a stream, and tell of each event; hang up when that returns False.

        Raises:
            PeerUnavailable: the gateway is away, or went away.
            CallFailed: it answered with an error.
        """
        with self._open("POST", path, json.dumps({**body, "stream": True}).encode()) as answer:
            for line in _read_lines(answer):
                if line.startswith(b"data: {") and not on_event():
                    return

    # --- files and batches

    def upload(self, content: bytes, name: str) -> str:
        """Upload the input of a batch; return the file's id."""
        boundary = uuid.uuid4().hex
        head = (
            f'--{boundary}\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
            f'--{boundary}\r\ncontent-disposition: form-data; name="file"; filename="{name}"\r\n'
            "content-type: application/jsonl\r\n\r\n"
        )
        body = head.encode() + content + f"\r\n--{boundary}--\r\n".encode()
        media_type = f"multipart/form-data; boundary={boundary}"
        answer = self._call("POST", "/v1/files", body, media_type)
        return str(json.loads(answer)["id"])

    def create_batch(self, file_id: str, endpoint: str, label: str) -> str:
        """Create a batch whose metadata has `label`; return its id."""
        body = {"input_file_id": file_id, "endpoint": endpoint, "completion_window": "24h"}
        return str(self._post_json("/v1/batches", {**body, "metadata": {"label": label}})["id"])

    def find_batch(self, label: str) -> str | None:
        """Return the id of the batch with `label` in its metadata, among the latest."""
        page = json.loads(self._call("GET", "/v1/batches?limit=100"))
        for batch in page["data"]:
            if (batch["metadata"] or {}).get("label") == label:
                return str(batch["id"])
        return None

    def batch(self, batch_id: str) -> dict[str, Any]:
        """Return a batch as it stands."""
        found: dict[str, Any] = json.loads(self._call("GET", f"/v1/batches/{batch_id}"))
        return found

    def cancel_batch(self, batch_id: str) -> None:
        """Ask for a batch's end."""
        self._call("POST", f"/v1/batches/{batch_id}/cancel")

    def content(self, file_id: str) -> bytes:
        """Return what a file holds."""
        return self._call("GET", f"/v1/files/{file_id}/content")

    # --- how it stands

    def is_ready(self) -> bool:
        """Return whether a token can be generated now."""
        try:
            self._call("GET", "/ready")
        except PeerUnavailable:
            return False
        return True

    def inspect(self) -> dict[str, Any]:
        """Return the control API's inspection."""
        found: dict[str, Any] = json.loads(self._call("GET", "/v1/inspection"))
        return found

    def drain(self, worker: str, deadline_s: float) -> None:
        """Ask the control API to drain a worker."""
        body = json.dumps({"deadline_s": deadline_s}).encode()
        self._call("PUT", f"/v1/workers/{worker}/drain", body)

    def cancel_drain(self, worker: str) -> None:
        """Ask the control API to take a drain back."""
        self._call("DELETE", f"/v1/workers/{worker}/drain")

    # --- calling

    def _post_json(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self._call("POST", path, json.dumps(body).encode()))
        return found

    def _call(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        media_type: str = "application/json",
    ) -> bytes:
        with self._open(method, path, body, media_type) as answer:
            return answer.read()

    @contextmanager
    def _open(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        media_type: str = "application/json",
    ) -> Iterator[HTTPResponse]:
        """Send a request and yield its answer, which is a good one.

        Raises:
            PeerUnavailable: nobody answered, the connection broke, or it is away for now.
            CallFailed: any other answer that is no success.
        """
        connection = HTTPConnection("127.0.0.1", self._port, timeout=self._timeout_s)
        try:
            headers = {} if body is None else {"content-type": media_type}
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            if answer.status >= HTTPStatus.BAD_REQUEST:
                said = f"{method} {path} was answered with {answer.status}: {answer.read()[:500]!r}"
                raise (PeerUnavailable if answer.status in _AWAY else CallFailed)(said)
            yield answer
        except (OSError, HTTPException) as error:
            raise PeerUnavailable(f"{method} {path} on port {self._port}: {error!r}") from error
        finally:
            connection.close()


class Patient:
    """Makes calls again while the gateway is away, until a time is over.

    Args:
        deadline_s: seconds after which a call that still fails is an error.
    """

    def __init__(self, client: ApiClient, deadline_s: float) -> None:
        self.client = client
        self._deadline_s = deadline_s

    def ask(self, call: Callable[[], Found]) -> Found:
        """Return what `call` returns, once it does.

        Raises:
            PeerUnavailable: the gateway was away for too long.
        """
        deadline = time.monotonic() + self._deadline_s
        while True:
            try:
                return call()
            except PeerUnavailable:
                if time.monotonic() >= deadline:
                    raise
                time.sleep(_AGAIN_S)

    def create_batch_once(self, content: bytes, endpoint: str, label: str) -> str:
        """Upload a file and make exactly one batch of it, whatever answers are lost."""
        client = self.client
        file_id = self.ask(lambda: client.upload(content, f"{label}.jsonl"))
        return self.ask(
            lambda: client.find_batch(label) or client.create_batch(file_id, endpoint, label)
        )

    def wait_for_batch(self, batch_id: str, *, stuck_s: float) -> dict[str, Any]:
        """Return a batch once it is final, or as it stands when nothing of it has been done for
        `stuck_s`."""
        seen: tuple[Any, ...] = ()
        since = time.monotonic()
        while True:
            batch = self.ask(lambda: self.client.batch(batch_id))
            progress = (batch["status"], batch["request_counts"])
            if progress != seen:
                seen, since = progress, time.monotonic()
            if batch["status"] in FINAL or time.monotonic() - since > stuck_s:
                return batch
            time.sleep(_AGAIN_S)

    def read_results(self, batch: dict[str, Any]) -> list[dict[str, Any]]:
        """Return the lines of a batch's output and error files."""
        ids = [batch[name] for name in ("output_file_id", "error_file_id") if batch[name]]
        contents = [self.ask(partial(self.client.content, file_id)) for file_id in ids]
        return [json.loads(line) for content in contents for line in content.splitlines()]


def _read_lines(answer: HTTPResponse) -> Iterator[bytes]:
    while line := answer.readline():
        yield line
