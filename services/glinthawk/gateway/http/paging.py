"""Pages of a list, as OpenAI's lists have them: newest first, each behind an id."""

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Protocol, TypeVar

from fastapi import Query

After = Annotated[str | None, Query(description="The id that the last page ended with.")]


class _HasId(Protocol):
    @property
    def id(self) -> str: ...


RecordT = TypeVar("RecordT", bound=_HasId)


def build_page(
    records: Sequence[RecordT], limit: int, build: Callable[[RecordT], dict[str, Any]]
) -> dict[str, Any]:
    """Return a page of up to `limit` records; one more was asked for, to know whether there are
    more."""
    shown = records[:limit]
    return {
        "object": "list",
        "data": [build(record) for record in shown],
        "first_id": shown[0].id if shown else None,
        "last_id": shown[-1].id if shown else None,
        "has_more": len(records) > limit,
    }
