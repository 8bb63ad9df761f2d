"""A custom_id's key is short, is its own, and leads back to it."""

from hypothesis import given
from hypothesis import strategies as st

from glinthawk.gateway.store.custom_ids import decode_custom_id, encode_custom_id

ANY_TEXT = st.text(st.characters(codec=None, exclude_categories=()))


@given(ANY_TEXT)
def test_a_custom_id_comes_back_from_what_is_kept(custom_id: str) -> None:
    key, long_custom_id = encode_custom_id(custom_id)
    assert len(key) <= 32
    assert decode_custom_id(key, long_custom_id) == custom_id


@given(ANY_TEXT, ANY_TEXT)
def test_two_custom_ids_have_two_keys(first: str, second: str) -> None:
    assert (first == second) == (encode_custom_id(first)[0] == encode_custom_id(second)[0])


def test_short_ids_that_count_up_have_keys_that_do() -> None:
    keys = [encode_custom_id(f"request-{number:06}")[0] for number in range(100)]
    assert keys == sorted(keys)


def test_no_short_id_can_look_like_a_digest() -> None:
    key, _ = encode_custom_id("x" * 33)
    assert (len(key), key[:1]) == (17, b"\xff")
    assert encode_custom_id(key.decode("latin-1"))[0] != key
