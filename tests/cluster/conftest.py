"""What tests against a real API server share; they skip, and say why, where there is none."""

from collections.abc import Iterator

import pytest

from cluster.control_plane import ControlPlane, NoControlPlane, open_control_plane


@pytest.fixture(scope="session")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """An API server, for the whole session."""
    try:
        with open_control_plane(tmp_path_factory.mktemp("control-plane")) as plane:
            yield plane
    except NoControlPlane as error:
        pytest.skip(str(error))
