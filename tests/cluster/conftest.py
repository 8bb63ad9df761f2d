"""What tests against a real API server share; they skip, and say why, where there is none.

The demo is the GlinthawkDeployment that `make cluster-test` brings up: whole processes in real
pods. Tests that change it leave it as they found it.
"""

import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from cluster.api import Api
from cluster.audit import AuditLog
from cluster.control_plane import ControlPlane, NoControlPlane, open_control_plane
from cluster.live import Deployment, find_reason, read_sample
from cluster.operator_process import Plane, open_plane
from cluster.rights import USER
from cluster.work import Lines, answer_here, make_lines
from cluster.world import World, open_world
from glinthawk.bench.tally import Answer

NUM_REQUESTS, NUM_TOKENS = 200, 16
FORBIDDEN = 403


@pytest.fixture(scope="session")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """An API server, for the whole session."""
    try:
        with open_control_plane(tmp_path_factory.mktemp("control-plane")) as plane:
            yield plane
    except NoControlPlane as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def running() -> None:
    """Skip where the demo does not run."""
    reason = find_reason()
    if reason is not None:
        pytest.skip(reason)


@pytest.fixture
def demo(running: None) -> Iterator[Deployment]:
    """Yield the demo, whole; afterwards it is as the sample says again."""
    deployment = Deployment(read_sample())
    deployment.await_settled()
    yield deployment
    deployment.apply()


@pytest.fixture
def api(demo: Deployment) -> Iterator[Api]:
    """Yield the demo's API."""
    api = Api(demo)
    yield api
    api.close()


@pytest.fixture(scope="session")
def lines() -> Lines:
    """Return the lines of a batch."""
    return make_lines(NUM_REQUESTS, NUM_TOKENS)


@pytest.fixture(scope="session")
def here(
    running: None, lines: Lines, tmp_path_factory: pytest.TempPathFactory
) -> Mapping[str, Answer]:
    """Return what `glinthawk batch` answers to the lines on this machine."""
    return answer_here(tmp_path_factory.mktemp("here"), list(lines))


@pytest.fixture
def label() -> str:
    """Return a name for a batch that no other test has, in this run or an earlier one."""
    return f"test-{uuid.uuid4().hex[:12]}"


@pytest.fixture(scope="session")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plane]:
    """A control plane with controllers, for tests of the operator's process."""
    try:
        with open_plane(tmp_path_factory.mktemp("operator-plane")) as opened:
            yield opened
    except NoControlPlane as reason:
        pytest.skip(str(reason))


@pytest.fixture
def world(plane: Plane, tmp_path: Path) -> Iterator[World]:
    """A world for one test; the operator was never refused anything for want of a right."""
    # A log of its own: tests move the world's.
    audit = AuditLog(plane.plane.audit_log)
    audit.skip()
    with open_world(plane, tmp_path) as opened:
        yield opened
        refused = [one for one in audit.read(USER) if one.code == FORBIDDEN]
        assert not refused, refused
