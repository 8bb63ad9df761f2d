"""What an API server was asked, by whom, read from its audit log."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

WRITES = frozenset({"create", "update", "patch", "delete", "deletecollection"})
OK, CREATED = 200, 201


class Right(NamedTuple):
    """What a rule of a role grants, one by one. resource: with its subresource after a slash."""

    group: str
    resource: str
    verb: str


@dataclass(frozen=True)
class Request:
    """A request that was answered, or a watch that began. time_s: seconds since 1970."""

    time_s: float
    verb: str
    group: str
    resource: str
    name: str
    code: int
    uri: str

    @property
    def is_write(self) -> bool:
        """Whether it may change something."""
        return self.verb in WRITES

    @property
    def rights(self) -> set[Right]:
        """The rights it needed: none for a page that is no resource, such as discovery.

        An apply that makes an object needs the right to create beside that to patch.
        """
        if not self.resource:
            return set()
        verbs = {self.verb}
        if self.verb == "patch" and self.code == CREATED:
            verbs.add("create")
        return {Right(self.group, self.resource, verb) for verb in verbs}


class AuditLog:
    """Reads an audit log from where it was left; each request comes once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def skip(self) -> None:
        """Pass over what was asked up to now."""
        self._offset = self._path.stat().st_size

    def read(self, user: str) -> list[Request]:
        """Return what a user asked since the last reading, oldest first."""
        with self._path.open("rb") as log:
            log.seek(self._offset)
            data = log.read()
        data = data[: data.rfind(b"\n") + 1]  # the last line may still be written
        self._offset += len(data)
        found = []
        for line in data.splitlines():
            event = json.loads(line)
            if event["user"].get("username") == user and not _is_end_of_watch(event):
                found.append(_request(event))
        return found


def count_by(requests: Iterable[Request]) -> dict[str, int]:
    """Return how many requests there were, by verb and resource, most first."""
    counts: dict[str, int] = {}
    for one in requests:
        what = f"{one.verb} {one.resource or one.uri.partition('?')[0]}"
        counts[what] = counts.get(what, 0) + 1
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _is_end_of_watch(event: dict[str, Any]) -> bool:
    """Tell whether a watch ended that was told of when it began."""
    is_end = event["stage"] == "ResponseComplete" and event["verb"] == "watch"
    return is_end and (event.get("responseStatus") or {}).get("code") == OK


def _request(event: dict[str, Any]) -> Request:
    place = event.get("objectRef") or {}
    resource = place.get("resource", "")
    if place.get("subresource"):
        resource = f"{resource}/{place['subresource']}"
    moment = event["requestReceivedTimestamp"].replace("Z", "+00:00")
    return Request(
        time_s=datetime.fromisoformat(moment).timestamp(),
        verb=event["verb"],
        group=place.get("apiGroup", ""),
        resource=resource,
        name=place.get("name", ""),
        code=(event.get("responseStatus") or {}).get("code", 0),
        uri=event["requestURI"],
    )
