"""A gateway for the tests of a module."""

from collections.abc import Iterator

import pytest

from unit.gateway.factories import END
from unit.gateway.http.serving import Served, serve


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serve(tmp_path_factory.mktemp("data")) as served:
        yield served


@pytest.fixture
def served(shared: Served) -> Served:
    """The module's gateway, its script as it was at first."""
    shared.tiers.script = [*b"hello world", END]
    shared.tiers.pace_s = 0.0
    shared.tiers.fail_at = None
    return shared
