"""API keys: how one is made, kept as a hash, and recognised when a client presents it.

A key is 256 random bits, so its plain SHA-256 cannot be searched and needs no salt. Keys come
from the store and, if the operator has one, from a file of `name:sha256` lines. Both are read
again while the gateway runs: a key revoked by another process is refused within seconds. No key
is ever written to a log, nor a line of the file that does not parse: it may be a key.
"""

import hashlib
import hmac
import re
import secrets
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from glinthawk.errors import InvalidConfig, InvalidRequest, StoreUnavailable
from glinthawk.gateway.store.interface import Store
from glinthawk.gateway.store.records import KeyRecord
from glinthawk.telemetry.logging import get_logger

REFRESH_S = 2.0
"""How long a key revoked in the store may still be accepted."""

_PREFIX = "gh-"
_RANDOM_BYTES = 32
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_SHA256 = re.compile(r"[0-9a-fA-F]{64}")
_LOG = get_logger("gateway.keys")


@dataclass(frozen=True)
class _KnownKey:
    name: str
    digest: bytes


def make_key() -> str:
    """Return a new key, `gh-` and 43 random characters that are safe in a URL."""
    return _PREFIX + secrets.token_urlsafe(_RANDOM_BYTES)


def hash_key(key: str) -> str:
    """Return the hash a key is kept as: SHA-256 in hexadecimal digits."""
    return _digest(key).hex()


def build_key_record(name: str, key: str, *, now: int) -> KeyRecord:
    """Return what to keep of a key. now: seconds since 1970.

    Raises:
        InvalidRequest: the name would not fit into a key file or a log line.
    """
    if not _NAME.fullmatch(name):
        raise InvalidRequest(
            f"the key name {name!r} is not 1 to 64 letters, digits, '.', '_' and '-'; "
            "choose another",
            param="name",
        )
    return KeyRecord(f"key_{uuid.uuid4().hex}", name, hash_key(key), created_at=now)


class KeyRing:
    """The keys that are valid now. Any thread may ask it.

    store: whose keys count. path: of a key file, None without one; it must be there at the
    start, later on its last keys count while it is gone. clock: seconds, monotonic.

    Raises:
        InvalidConfig: the file cannot be read at the start.
        StoreUnavailable: the store cannot be read at the start.
    """

    def __init__(
        self,
        store: Store,
        *,
        path: Path | None = None,
        refresh_s: float = REFRESH_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._refresh_s = refresh_s
        self._clock = clock
        self._read_at_s = clock()
        self._stored = _read_store(store)
        self._is_store_away = False
        self._file = None if path is None else _KeyFile(path)

    def find(self, presented: str) -> str | None:
        """Return the name of the valid key that `presented` is; None if it is none.

        The time it takes does not depend on which key matches, nor on whether one does.
        """
        digest = _digest(presented)
        name = None
        for known in self._read():
            if hmac.compare_digest(known.digest, digest):
                name = known.name
        return name

    def _read(self) -> Sequence[_KnownKey]:
        now_s = self._clock()
        if now_s - self._read_at_s >= self._refresh_s:
            self._read_at_s = now_s
            self._refresh_store()
        return self._stored if self._file is None else [*self._stored, *self._file.read()]

    def _refresh_store(self) -> None:
        try:
            self._stored = _read_store(self._store)
        except StoreUnavailable as error:
            if not self._is_store_away:
                _LOG.warning("keys_not_read_again", error=str(error))
            self._is_store_away = True
        else:
            self._is_store_away = False


class _KeyFile:
    """A key file, read again when it is another one than before."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._is_away = False
        try:
            self._version = self._stat()
            self._keys = self._parse()
        except OSError as error:
            raise InvalidConfig(
                f"the key file {path} cannot be read ({error}); make it readable, or start "
                "without one"
            ) from error

    def read(self) -> Sequence[_KnownKey]:
        """Return the keys of the file, or the last ones while it cannot be read."""
        try:
            version = self._stat()
            if version != self._version:
                self._keys = self._parse()
                self._version = version
                _LOG.info("key_file_read", path=str(self._path), num_keys=len(self._keys))
        except OSError as error:
            if not self._is_away:
                _LOG.warning("key_file_away", path=str(self._path), error=str(error))
            self._is_away = True
        else:
            self._is_away = False
        return self._keys

    def _stat(self) -> tuple[int, int, int]:
        found = self._path.stat()
        return found.st_mtime_ns, found.st_size, found.st_ino

    def _parse(self) -> Sequence[_KnownKey]:
        keys = []
        text = self._path.read_bytes().decode("utf-8", "replace")
        for line_number, line in enumerate(text.split("\n"), start=1):
            stripped = line.strip()
            if not stripped or stripped.startswith("#"):
                continue
            name, _, sha256 = stripped.partition(":")
            if _NAME.fullmatch(name) and _SHA256.fullmatch(sha256):
                keys.append(_KnownKey(name, bytes.fromhex(sha256)))
            else:
                _LOG.warning(
                    "key_line_skipped",
                    path=str(self._path),
                    line_number=line_number,
                    expected="name:sha256 in 64 hexadecimal digits",
                )
        return keys


def _read_store(store: Store) -> Sequence[_KnownKey]:
    return [
        _KnownKey(key.name, bytes.fromhex(key.sha256))
        for key in store.list_keys()
        if key.revoked_at is None
    ]


def _digest(key: str) -> bytes:
    # A header may carry anything; what is no text is no key, and must not raise.
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
