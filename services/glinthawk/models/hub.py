"""A hub of models: what a repository holds, and parts of its files.

huggingface_hub fetches whole files only, so this speaks the hub's HTTP itself: ranges, taken up
where they broke off. Knows nothing of tensors.
"""

import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar
from urllib.parse import quote

from glinthawk.errors import InvalidConfig, PeerUnavailable

TIMEOUT_S = 60.0
ATTEMPTS = 6
FIRST_PAUSE_S = 1.0
DEFAULT_REVISION = "main"
_BLOCK_BYTES = 4 << 20

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Repository:
    """A commit of a repository, and its files' names."""

    name: str
    commit: str
    files: frozenset[str]


class Hub:
    """One hub, or a mirror of it.

    endpoint: its URL, None for the one that huggingface_hub knows. pause_s: before what failed is
    asked for again, doubled each time.
    """

    def __init__(
        self,
        endpoint: str | None = None,
        token: str | None = None,
        *,
        pause_s: float = FIRST_PAUSE_S,
    ) -> None:
        if endpoint is None:
            from huggingface_hub.constants import ENDPOINT

            endpoint = str(ENDPOINT)
        self._endpoint = endpoint.rstrip("/")
        self._token = token
        self._pause_s = pause_s

    def describe(self, name: str, revision: str | None) -> Repository:
        """Return what a repository holds at a branch, tag or commit.

        Raises:
            InvalidConfig: the hub says that there is no such thing, or not for this token.
            PeerUnavailable: the hub does not answer.
        """
        at = quote(revision or DEFAULT_REVISION, safe="")
        source = self._source(f"{self._endpoint}/api/models/{quote(name)}/revision/{at}")
        try:
            described = json.loads(source.read())
            files = frozenset(str(entry["rfilename"]) for entry in described["siblings"])
            return Repository(name, str(described["sha"]), files)
        except (ValueError, KeyError, TypeError) as error:
            raise InvalidConfig(
                f"{self._endpoint} is no hub: it describes {name} in a way that is not understood"
            ) from error

    def open(self, repository: Repository, file: str) -> "RemoteFile":
        """Return a file, whose parts can then be read; raises as `describe`."""
        path = f"{quote(repository.name)}/resolve/{quote(repository.commit, safe='')}/{quote(file)}"
        source = self._source(f"{self._endpoint}/{path}")
        return RemoteFile(source, source.measure())

    def _source(self, url: str) -> "_Source":
        return _Source(url, self._token, self._pause_s)


@dataclass(frozen=True)
class _Source:
    """A URL, asked again when it fails for the moment."""

    url: str
    token: str | None = field(repr=False)
    pause_s: float

    def read(self) -> bytes:
        """Return all of it."""
        return self._persist(lambda: self._read({}))

    def measure(self) -> int:
        """Return its size. Asked for a byte: some servers refuse HEAD where a link is signed."""
        return self._persist(self._measure)

    def stream(self, first: int, last: int) -> Iterator[bytes]:
        """Yield the bytes [first, last), in blocks."""
        failures = 0
        while first < last:
            try:
                for block in self._stream(first, last):
                    first += len(block)
                    failures = 0
                    yield block
            except (OSError, http.client.HTTPException) as error:
                failures += 1
                self._give_up_or_wait(error, failures)

    def _read(self, headers: dict[str, str]) -> bytes:
        with self._request(headers) as answer:
            return bytes(answer.read())

    def _measure(self) -> int:
        try:
            with self._request({"Range": "bytes=0-0"}) as answer:
                _, _, total = (answer.headers.get("Content-Range") or "").rpartition("/")
                return int(total or answer.headers["Content-Length"])
        except urllib.error.HTTPError as error:
            if error.code == 416:  # it is empty
                return 0
            raise

    def _stream(self, first: int, last: int) -> Iterator[bytes]:
        with self._request({"Range": f"bytes={first}-{last - 1}"}) as answer:
            if answer.status != 206:
                answer.read(first)
            left = last - first
            while left > 0:
                block = answer.read(min(left, _BLOCK_BYTES))
                if not block:
                    raise http.client.IncompleteRead(b"", left)
                left -= len(block)
                yield block

    def _request(self, headers: dict[str, str]) -> http.client.HTTPResponse:
        request = urllib.request.Request(self.url, headers={"Accept-Encoding": "identity"})
        for name, value in headers.items():
            request.add_header(name, value)
        if self.token:
            # Not to where the hub sends us: that has a signature of its own.
            request.add_unredirected_header("Authorization", f"Bearer {self.token}")
        answer: http.client.HTTPResponse = urllib.request.urlopen(request, timeout=TIMEOUT_S)
        return answer

    def _persist(self, ask: Callable[[], Answer]) -> Answer:
        failures = 0
        while True:
            try:
                return ask()
            except (OSError, http.client.HTTPException) as error:
                failures += 1
                self._give_up_or_wait(error, failures)

    def _give_up_or_wait(self, error: Exception, failures: int) -> None:
        if isinstance(error, urllib.error.HTTPError):
            error.close()
            if error.code < 500 and error.code not in (408, 429):
                said = error.headers.get("X-Error-Message") or error.reason
                raise InvalidConfig(f"{self.url} is refused: {error.code} {said}") from error
        if failures >= ATTEMPTS:
            raise PeerUnavailable(
                f"{self.url} cannot be had, asked {failures} times: {error}"
            ) from error
        time.sleep(self.pause_s * 2 ** (failures - 1))


@dataclass(frozen=True)
class RemoteFile:
    """A file at a hub. size: in bytes."""

    source: _Source
    size: int

    def read(self, first: int, last: int) -> bytes:
        """Return the bytes [first, last); raises as `Hub.describe`."""
        return b"".join(self.stream(first, last))

    def stream(self, first: int, last: int) -> Iterator[bytes]:
        """Yield the bytes [first, last) in blocks; raises as `Hub.describe`."""
        return self.source.stream(first, last)
