"""The control API of a gateway, as JSON over HTTP: how it stands, and drains.

What comes back becomes frozen data here; names there are names here. Fields of a later release are
passed over. It knows nothing of Kubernetes, and reads no proxy from the environment.
"""

import http.client
import json
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit

from glinthawk_operator.errors import GatewayAway, GatewayRefused

TIMEOUT_S = 3.0
MAX_ANSWER_BYTES = 16 << 20

ACTIVE = "active"
DRAINING = "draining"
DRAINED = "drained"
LOST = "lost"


@dataclass(frozen=True)
class GatewayWorker:
    """An attention worker, by its registration. state: active, draining, drained or lost."""

    name: str
    state: str
    num_sequences: int = 0
    kv_used_bytes: int = 0
    kv_capacity_bytes: int = 0
    busy_share: float | None = None


@dataclass(frozen=True)
class Inspection:
    """How a gateway stands. stage_busy_shares: of the stages whose share is known."""

    is_ready: bool
    version: str = ""
    protocol_version: int | None = None
    num_stages: int = 0
    num_registered_stages: int = 0
    stage_busy_shares: tuple[float, ...] = ()
    workers: tuple[GatewayWorker, ...] = ()
    kv_used_bytes: int = 0
    kv_demanded_bytes: int = 0
    kv_capacity_bytes: int = 0
    tokens_per_second: float = 0.0

    @property
    def has_figures(self) -> bool:
        """Whether the figures of KV mean anything: before the tiers were whole once they do not."""
        return self.is_ready or bool(self.workers) or self.kv_demanded_bytes > 0

    def worker(self, name: str) -> GatewayWorker | None:
        """Return a worker, None if it is not registered."""
        return next((one for one in self.workers if one.name == name), None)


class GatewayClient:
    """Asks one gateway.

    url: of its control API. secret: the cluster's shared secret, None where none is asked for.
    """

    def __init__(self, url: str, *, secret: str | None, timeout_s: float = TIMEOUT_S) -> None:
        parts = urlsplit(url)
        self._url = url
        self._host = parts.hostname or ""
        self._port = parts.port or 80
        self._path = parts.path.rstrip("/")
        self._headers = {} if secret is None else {"Authorization": f"Bearer {secret}"}
        self._timeout_s = timeout_s

    def inspect(self) -> Inspection:
        """Return how the gateway stands.

        Raises:
            GatewayAway: nobody answers in time.
            GatewayRefused: the secret is wrong, or it is no gateway.
        """
        return read_inspection(self._call("GET", "/v1/inspection"))

    def drain(self, worker: str, deadline_s: float) -> None:
        """Begin to drain a worker; raises as `inspect`."""
        self._call("PUT", _drain_path(worker), {"deadline_s": deadline_s})

    def cancel_drain(self, worker: str) -> None:
        """Take a drain back; raises as `inspect`."""
        self._call("DELETE", _drain_path(worker))

    def _call(
        self, method: str, path: str, body: Mapping[str, Any] | None = None
    ) -> Mapping[str, Any]:
        connection = http.client.HTTPConnection(self._host, self._port, timeout=self._timeout_s)
        headers = dict(self._headers)
        content = None
        if body is not None:
            content = json.dumps(body)
            headers["Content-Type"] = "application/json"
        try:
            connection.request(method, self._path + path, body=content, headers=headers)
            answer = connection.getresponse()
            data = answer.read(MAX_ANSWER_BYTES)
        except (OSError, http.client.HTTPException, socket.gaierror) as error:
            raise GatewayAway(
                f"no gateway answers at {self._url}: {error or type(error).__name__}"
            ) from error
        finally:
            connection.close()
        if not 200 <= answer.status < 300:
            raise GatewayRefused(
                f"{self._url}: {answer.status} {_read_message(data)}", status=answer.status
            )
        return _read_object(data, self._url, answer.status)


def read_inspection(document: Mapping[str, Any]) -> Inspection:
    """Return an inspection from its document.

    Raises:
        GatewayRefused: it is none.
    """
    try:
        kv = document.get("kv") or {}
        stages = document.get("stages") or []
        shares = [stage.get("busy_share") for stage in stages]
        return Inspection(
            is_ready=bool(document["is_ready"]),
            version=str(document.get("version", "")),
            protocol_version=document.get("protocol_version"),
            num_stages=int(document.get("num_stages", 0)),
            num_registered_stages=len(stages),
            stage_busy_shares=tuple(float(share) for share in shares if share is not None),
            workers=tuple(_read_worker(one) for one in document.get("workers") or []),
            kv_used_bytes=int(kv.get("used_bytes", 0)),
            kv_demanded_bytes=int(kv.get("demanded_bytes", 0)),
            kv_capacity_bytes=int(kv.get("capacity_bytes", 0)),
            tokens_per_second=float(document.get("tokens_out_per_s", 0.0)),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise GatewayRefused(
            f"the answer is no inspection of a gateway: {error!r}", status=200
        ) from error


def _read_worker(document: Mapping[str, Any]) -> GatewayWorker:
    share = document.get("busy_share")
    return GatewayWorker(
        name=str(document["name"]),
        state=str(document["state"]),
        num_sequences=int(document.get("num_sequences", 0)),
        kv_used_bytes=int(document.get("kv_used_bytes", 0)),
        kv_capacity_bytes=int(document.get("kv_capacity_bytes", 0)),
        busy_share=None if share is None else float(share),
    )


def _read_object(data: bytes, url: str, status: int) -> Mapping[str, Any]:
    if not data:
        return {}
    try:
        document = json.loads(data)
    except ValueError as error:
        raise GatewayRefused(f"{url} answers with no JSON: {error}", status=status) from error
    if not isinstance(document, dict):
        raise GatewayRefused(f"{url} answers with no JSON object", status=status)
    return document


def _read_message(data: bytes) -> str:
    try:
        return str(json.loads(data)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return data[:200].decode(errors="replace")


def _drain_path(worker: str) -> str:
    return f"/v1/workers/{quote(worker, safe='')}/drain"
