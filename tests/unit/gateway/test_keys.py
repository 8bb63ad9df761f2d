"""Keys: made strong, kept as hashes, recognised, and refused within seconds of being revoked."""

import hashlib
import hmac
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from glinthawk.errors import InvalidConfig, InvalidRequest
from glinthawk.gateway.keys import KeyRing, build_key_record, hash_key, make_key
from glinthawk.gateway.store.interface import Store
from glinthawk.gateway.store.sql import open_store


class Seconds:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Seconds:
    return Seconds()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = open_store(tmp_path / "data")
    yield opened
    opened.close()


def add_key(store: Store, name: str) -> str:
    key = make_key()
    store.add_key(build_key_record(name, key, now=1))
    return key


def test_a_key_is_256_random_bits_behind_a_prefix() -> None:
    keys = {make_key() for _ in range(100)}
    assert len(keys) == 100
    assert all(re.fullmatch(r"gh-[A-Za-z0-9_-]{43}", key) for key in keys)


def test_only_the_hash_of_a_key_is_kept(store: Store, tmp_path: Path) -> None:
    key = add_key(store, "ci")
    [record] = store.list_keys()
    assert record.sha256 == hashlib.sha256(key.encode()).hexdigest() == hash_key(key)
    on_disk = b"".join(path.read_bytes() for path in (tmp_path / "data").glob("glinthawk*"))
    assert record.sha256.encode() in on_disk
    assert key.encode() not in on_disk


@pytest.mark.parametrize("name", ["", "a b", "a:b", "ä", "x" * 65, "a\n", "#a"])
def test_a_name_that_would_break_a_key_file_is_refused(name: str) -> None:
    with pytest.raises(InvalidRequest, match="choose another"):
        build_key_record(name, make_key(), now=1)


def test_each_key_is_found_by_its_name_and_nothing_else_is(store: Store) -> None:
    keys = {name: add_key(store, name) for name in ("first", "middle", "last")}
    ring = KeyRing(store)
    assert {name: ring.find(key) for name, key in keys.items()} == {n: n for n in keys}
    strangers = ["", make_key(), hash_key(keys["first"]), keys["first"] + " ", "ü", "\ud800", "\0"]
    assert [ring.find(presented) for presented in strangers] == [None] * len(strangers)


def test_every_key_is_compared_whichever_matches(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = [add_key(store, name) for name in ("first", "middle", "last")]
    ring = KeyRing(store)
    compared: list[int] = []
    compare = hmac.compare_digest

    def count(first: bytes, second: bytes) -> bool:
        compared.append(len(first))
        return bool(compare(first, second))

    monkeypatch.setattr("hmac.compare_digest", count)
    for presented in [*keys, "no key"]:
        compared.clear()
        ring.find(presented)
        assert compared == [32, 32, 32]


def test_a_change_in_the_store_counts_within_seconds(
    store: Store, tmp_path: Path, clock: Seconds
) -> None:
    revoked = add_key(store, "revoked")
    ring = KeyRing(store, refresh_s=2.0, clock=clock)
    beside = open_store(tmp_path / "data", beside_gateway=True)
    beside.revoke_key("revoked", now=2)
    added = add_key(beside, "added")
    beside.close()
    assert (ring.find(revoked), ring.find(added)) == ("revoked", None)
    clock.now_s += 2.0
    assert (ring.find(revoked), ring.find(added)) == (None, "added")


def test_keys_go_on_while_the_store_is_away_which_is_logged_once(
    store: Store, tmp_path: Path, clock: Seconds
) -> None:
    key = add_key(store, "ci")
    ring = KeyRing(store, refresh_s=1.0, clock=clock)
    store.close()
    with capture_logs() as logs:
        for _ in range(3):
            clock.now_s += 1.0
            assert ring.find(key) == "ci"
    assert [entry["event"] for entry in logs] == ["keys_not_read_again"]


# --- the key file


def line_of(name: str, key: str) -> str:
    return f"{name}:{hash_key(key)}\n"


def test_a_file_adds_keys_to_those_of_the_store(store: Store, tmp_path: Path) -> None:
    stored, (one, two) = add_key(store, "stored"), (make_key(), make_key())
    path = tmp_path / "keys"
    upper = f"two:{hash_key(two).upper()}"
    path.write_text(f"# our keys\n\n  {line_of('one', one)}\r\n{upper}")
    ring = KeyRing(store, path=path)
    assert [ring.find(key) for key in (stored, one, two)] == ["stored", "one", "two"]


def test_a_changed_file_is_read_again_at_once(store: Store, tmp_path: Path) -> None:
    old, new = make_key(), make_key()
    path, replacement = tmp_path / "keys", tmp_path / "replacement"
    path.write_text(line_of("old", old))
    ring = KeyRing(store, path=path)
    assert ring.find(old) == "old"
    replacement.write_text(line_of("new", new))
    replacement.rename(path)
    assert (ring.find(old), ring.find(new)) == (None, "new")
    path.write_text(line_of("new", new) + line_of("old", old))
    assert (ring.find(old), ring.find(new)) == ("old", "new")
    path.write_text("")
    assert (ring.find(old), ring.find(new)) == (None, None)


def test_a_file_is_not_read_again_while_it_is_the_same(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = make_key()
    path = tmp_path / "keys"
    path.write_text(line_of("ci", key))
    ring = KeyRing(store, path=path)
    monkeypatch.setattr(Path, "read_bytes", lambda _self: pytest.fail("read again"))
    assert ring.find(key) == "ci"


def test_a_bad_line_is_skipped_and_told_by_its_number_but_never_shown(
    store: Store, tmp_path: Path
) -> None:
    good, pasted = make_key(), make_key()
    bad = [f"pasted:{pasted}", "no colon", f"a b:{hash_key(pasted)}", f"x:{'0' * 63}", "\x0b\u2028"]
    path = tmp_path / "keys"
    path.write_text("# comment\n" + "\n".join(bad) + "\n" + line_of("good", good))
    with capture_logs() as logs:
        ring = KeyRing(store, path=path)
    assert ring.find(good) == "good"
    assert ring.find(pasted) is None
    skipped = [entry["line_number"] for entry in logs if entry["event"] == "key_line_skipped"]
    assert skipped == [2, 3, 4, 5]
    assert pasted not in repr(logs)


def test_bytes_that_are_no_text_spoil_only_their_line(store: Store, tmp_path: Path) -> None:
    key = make_key()
    path = tmp_path / "keys"
    path.write_bytes(b"\xff\xfe:\x80\n" + line_of("ci", key).encode())
    assert KeyRing(store, path=path).find(key) == "ci"


def test_a_file_that_vanishes_keeps_its_last_keys_until_it_is_back(
    store: Store, tmp_path: Path
) -> None:
    old, new = make_key(), make_key()
    path = tmp_path / "keys"
    path.write_text(line_of("old", old))
    ring = KeyRing(store, path=path)
    path.unlink()
    with capture_logs() as logs:
        assert [ring.find(old) for _ in range(3)] == ["old"] * 3
    assert [entry["event"] for entry in logs] == ["key_file_away"]
    path.write_text(line_of("new", new))
    assert (ring.find(old), ring.find(new)) == (None, "new")


def test_a_file_that_is_not_there_at_the_start_is_refused(store: Store, tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match="no-such-file"):
        KeyRing(store, path=tmp_path / "no-such-file")
