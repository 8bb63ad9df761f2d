"""Whether an object stands as it was applied, however the API server writes it."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glinthawk_operator.manifests.applied import hash_manifest, holds, is_applied, stamp

documents = st.recursive(
    st.none() | st.booleans() | st.integers(0, 9) | st.sampled_from(["a", "b", "1Gi"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner),
    max_leaves=8,
)


@given(documents)
def test_everything_holds_itself(document: Any) -> None:
    assert holds(document, document)


@pytest.mark.parametrize(
    ("live", "wanted"),
    [
        ({"cpu": "500m"}, {"cpu": "0.5"}),
        ({"memory": "1Gi"}, {"memory": "1024Mi"}),
        ({"port": 80, "protocol": "TCP"}, {"port": 80}),
        ([{"name": "b", "x": 1}, {"name": "a", "y": 2}], [{"name": "a"}]),
        ({}, {"annotations": {}}),
        ({}, {"maxUnavailable": 0}),
    ],
)
def test_other_spellings_and_additions_hold(live: Any, wanted: Any) -> None:
    assert holds(live, wanted)


@pytest.mark.parametrize(
    ("live", "wanted"),
    [
        ({"cpu": "500m"}, {"cpu": "1"}),
        ({"a": 1}, {"b": 1}),
        ([{"name": "a", "image": "x:1"}], [{"name": "a", "image": "x:2"}]),
        ([1, 2], [1]),
        ({"on": False}, {"on": True}),
        (None, {"a": 1}),
    ],
)
def test_what_differs_does_not_hold(live: Any, wanted: Any) -> None:
    assert not holds(live, wanted)


def test_a_field_that_is_no_longer_wanted_is_seen_by_the_hash() -> None:
    before = stamp({"metadata": {"name": "x"}, "spec": {"a": 1, "b": 2}})
    after = stamp({"metadata": {"name": "x"}, "spec": {"a": 1}})
    assert is_applied(before, before)
    assert not is_applied(after, before)
    assert not is_applied(after, None)


def test_a_change_by_someone_else_is_seen() -> None:
    wanted = stamp({"metadata": {"name": "x"}, "spec": {"a": 1}})
    live = {**wanted, "spec": {"a": 3}}
    assert not is_applied(wanted, live)


def test_a_hash_does_not_depend_on_the_order_of_keys() -> None:
    assert hash_manifest({"a": 1, "b": 2}) == hash_manifest({"b": 2, "a": 1})
