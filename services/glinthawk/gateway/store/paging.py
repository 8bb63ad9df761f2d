"""Pages of a table in the order of creation, exact though many rows share a second."""

from typing import Any

from sqlalchemy import Connection, Row, Select, Table, select, tuple_

from glinthawk.errors import NotFound
from glinthawk.gateway.fields import shown


def fetch_page(
    connection: Connection,
    rows: Select[Any],
    table: Table,
    *,
    limit: int,
    after: str | None,
    newest_first: bool,
) -> list[Row[Any]]:
    """Return up to `limit` of `rows` of `table` that come behind the row with the id `after`.

    Raises:
        NotFound: there is no such row.
    """
    position = tuple_(table.c.created_at, table.c.sequence)
    if after is not None:
        start = connection.execute(
            select(table.c.created_at, table.c.sequence).where(table.c.id == after)
        ).one_or_none()
        if start is None:
            raise NotFound(f"there is nothing with the id {shown(after)} to list behind")
        behind = tuple_(start.created_at, start.sequence)
        rows = rows.where(position < behind if newest_first else position > behind)
    columns = (table.c.created_at, table.c.sequence)
    order = [column.desc() if newest_first else column.asc() for column in columns]
    return list(connection.execute(rows.order_by(*order).limit(limit)))
