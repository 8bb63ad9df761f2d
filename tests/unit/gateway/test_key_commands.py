import io
from contextlib import closing
from pathlib import Path

import pytest
from rich.console import Console

from glinthawk.errors import InvalidConfig, InvalidRequest, NotFound
from glinthawk.gateway.key_commands import build_key_table, create_key, list_keys, revoke_key
from glinthawk.gateway.keys import KeyRing
from glinthawk.gateway.store.sql import open_store


def test_keys_are_made_and_revoked_while_a_gateway_has_the_folder(tmp_path: Path) -> None:
    now_s = [0.0]
    with closing(open_store(tmp_path)) as store:
        ring = KeyRing(store, clock=lambda: now_s[0])
        key = create_key(tmp_path, "alice")
        now_s[0] += 10.0
        assert ring.find(key) == "alice"
        with pytest.raises(InvalidRequest, match="revoke it first"):
            create_key(tmp_path, "alice")
        revoke_key(tmp_path, "alice")
        now_s[0] += 10.0
        assert ring.find(key) is None
        assert ring.find(create_key(tmp_path, "alice")) is None
        now_s[0] += 10.0
        assert [(one.name, one.revoked_at is None) for one in list_keys(tmp_path)] == [
            ("alice", False),
            ("alice", True),
        ]


def test_the_first_key_may_come_before_the_first_gateway(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    key = create_key(folder, "alice")
    with closing(open_store(folder)) as store:
        assert KeyRing(store).find(key) == "alice"


def test_the_table_shows_neither_key_nor_hash(tmp_path: Path) -> None:
    key = create_key(tmp_path, "alice")
    revoke_key(tmp_path, "alice")
    (record,) = list_keys(tmp_path)
    console = Console(file=io.StringIO(), width=200)
    console.print(build_key_table([record]))
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    assert "alice" in shown
    assert shown.count(" UTC") == 2
    assert key not in shown
    assert record.sha256[:8] not in shown


def test_a_name_that_cannot_be_one_is_wrong_usage(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match="choose another"):
        create_key(tmp_path / "data", "a:b")
    assert not (tmp_path / "data").exists()


def test_a_folder_without_a_store_is_said_and_not_made(tmp_path: Path) -> None:
    folder = tmp_path / "mistyped"
    with pytest.raises(NotFound, match="--data-dir"):
        list_keys(folder)
    with pytest.raises(NotFound, match="--data-dir"):
        revoke_key(folder, "alice")
    assert not folder.exists()
    create_key(folder, "alice")
    with pytest.raises(NotFound, match="no valid key 'bob'"):
        revoke_key(folder, "bob")
