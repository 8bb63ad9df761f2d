"""What `glinthawk keys` does: make, list and revoke API keys in a store, beside its gateway.

A key is shown once, when it is made; the store has only its hash, and nothing here shows that.
"""

import time
from collections.abc import Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

from rich.table import Table

from glinthawk.errors import InvalidConfig, InvalidRequest, NotFound
from glinthawk.gateway.keys import build_key_record, make_key
from glinthawk.gateway.store.database import DATABASE_NAME
from glinthawk.gateway.store.records import KeyRecord
from glinthawk.gateway.store.sql import open_store


def create_key(data_dir: Path, name: str) -> str:
    """Return a new key, which is in the store by its hash.

    Raises:
        InvalidConfig: the name cannot be one, or the folder is of another release.
        InvalidRequest: there is a valid key of that name.
        StoreUnavailable: the store cannot be written now.
    """
    key = make_key()
    try:
        record = build_key_record(name, key, now=int(time.time()))
    except InvalidRequest as error:
        raise InvalidConfig(str(error)) from error
    with closing(open_store(data_dir, beside_gateway=True)) as store:
        store.add_key(record)
    return key


def list_keys(data_dir: Path) -> Sequence[KeyRecord]:
    """Return all keys, the revoked ones included.

    Raises:
        NotFound: there is no store in the folder.
        StoreUnavailable: it cannot be read now.
    """
    _require_store(data_dir)
    with closing(open_store(data_dir, beside_gateway=True)) as store:
        return store.list_keys()


def revoke_key(data_dir: Path, name: str) -> KeyRecord:
    """Make a key invalid; a gateway refuses it within seconds.

    Raises:
        NotFound: there is no store in the folder, or no valid key of that name.
        StoreUnavailable: the store cannot be written now.
    """
    _require_store(data_dir)
    with closing(open_store(data_dir, beside_gateway=True)) as store:
        return store.revoke_key(name, now=int(time.time()))


def build_key_table(keys: Sequence[KeyRecord]) -> Table:
    """Return names and times."""
    table = Table(box=None, pad_edge=False)
    for column in ("name", "created", "revoked"):
        table.add_column(column, no_wrap=True)
    for key in keys:
        table.add_row(key.name, _show_time(key.created_at), _show_time(key.revoked_at))
    return table


def _require_store(data_dir: Path) -> None:
    if not (data_dir / DATABASE_NAME).is_file():
        raise NotFound(
            f"there is no store in {data_dir}; give the gateway's folder as --data-dir, or make "
            "the first key with glinthawk keys create"
        )


def _show_time(seconds: int | None) -> str:
    if seconds is None:
        return "-"
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
