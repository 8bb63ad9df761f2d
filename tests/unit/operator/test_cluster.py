"""Calls of the API server over a real socket: faults are tried again, or become our errors."""

from collections.abc import Iterator

import pytest
from kubernetes import client

from factories_api import ApiStandIn, Pauses, make_cluster
from glinthawk_operator.cluster import Cluster
from glinthawk_operator.errors import (
    ApiConflict,
    ApiError,
    ApiForbidden,
    ApiInvalid,
    ApiNotFound,
    ApiUnavailable,
)

POD = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "ns"}}


@pytest.fixture
def server() -> Iterator[ApiStandIn]:
    server = ApiStandIn()
    yield server
    server.close()


@pytest.fixture
def pauses() -> Pauses:
    return Pauses()


@pytest.fixture
def cluster(server: ApiStandIn, pauses: Pauses) -> Cluster:
    return make_cluster(server, pauses)


def test_apply_is_server_side_with_our_manager(server: ApiStandIn, cluster: Cluster) -> None:
    cluster.apply(POD)
    ((verb, path, kind, body),) = server.asked
    assert verb == "PATCH"
    assert path.startswith("/api/v1/namespaces/ns/pods/p?")
    assert "fieldManager=glinthawk-operator" in path
    assert "force=true" in path.lower()
    assert kind == "application/apply-patch+yaml"
    assert body == POD


def test_nothing_is_asked_before_the_first_call(server: ApiStandIn, cluster: Cluster) -> None:
    assert server.asked == []


def test_delete_names_the_uid(server: ApiStandIn, cluster: Cluster) -> None:
    cluster.delete("Pod", "p", "ns", uid="u1", grace_s=0)
    ((verb, _, _, body),) = server.asked
    assert verb == "DELETE"
    assert body["preconditions"] == {"uid": "u1"}
    assert body["gracePeriodSeconds"] == 0


def test_deleting_what_is_gone_is_done(server: ApiStandIn, cluster: Cluster) -> None:
    server.fail(404)
    cluster.delete("Pod", "p", "ns", uid="u1")


def test_scale_and_status_go_to_their_subresources(server: ApiStandIn, cluster: Cluster) -> None:
    cluster.scale("Deployment", "d", "ns", 3)
    cluster.patch_status("demo", "ns", {"endpoint": None})
    scale, status = server.asked
    assert scale[1].startswith("/apis/apps/v1/namespaces/ns/deployments/d/scale")
    assert scale[3] == {"spec": {"replicas": 3}}
    assert status[1].startswith(
        "/apis/glinthawk.dev/v1alpha1/namespaces/ns/glinthawkdeployments/demo/status"
    )
    assert status[3] == {"status": {"endpoint": None}}


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (400, ApiInvalid),
        (401, ApiForbidden),
        (403, ApiForbidden),
        (404, ApiNotFound),
        (409, ApiConflict),
        (418, ApiError),
        (422, ApiInvalid),
    ],
)
def test_what_will_not_get_better_is_not_tried_again(
    server: ApiStandIn, cluster: Cluster, code: int, kind: type[ApiError]
) -> None:
    server.fail(code)
    with pytest.raises(kind, match=f"because of {code}") as raised:
        cluster.apply(POD)
    assert type(raised.value) is kind
    assert raised.value.status == code
    assert len(server.asked) == 1


@pytest.mark.parametrize("code", [0, 429, 500, 503, 504])
def test_what_may_get_better_is_tried_again(
    server: ApiStandIn, cluster: Cluster, code: int
) -> None:
    server.fail(code)
    server.fail(code)
    assert cluster.apply(POD) == {"metadata": {}}
    assert len(server.asked) == 3


def test_waits_as_long_as_the_server_asks(
    server: ApiStandIn, cluster: Cluster, pauses: Pauses
) -> None:
    server.fail(429, Retry_After="2")
    cluster.get("Pod", "p", "ns")
    assert pauses.slept == [2.0]


def test_a_long_wait_is_left_to_the_queue(
    server: ApiStandIn, cluster: Cluster, pauses: Pauses
) -> None:
    server.fail(429, Retry_After="30")
    with pytest.raises(ApiUnavailable) as raised:
        cluster.get("Pod", "p", "ns")
    assert raised.value.retry_after_s == 30.0
    assert pauses.slept == []


def test_gives_up_when_its_time_is_over(
    server: ApiStandIn, cluster: Cluster, pauses: Pauses
) -> None:
    for _ in range(50):
        server.fail(500)
    with pytest.raises(ApiUnavailable):
        cluster.get("Pod", "p", "ns")
    assert pauses.now_s <= 10.0


def test_a_server_that_is_not_there_is_unavailable(pauses: Pauses) -> None:
    configuration = client.Configuration()
    configuration.host = "http://127.0.0.1:1"
    configuration.retries = False
    cluster = Cluster(client.ApiClient(configuration), clock=pauses.clock, sleep=pauses.sleep)
    with pytest.raises(ApiUnavailable, match="does not answer"):
        cluster.get("Pod", "p", "ns")


def test_a_kind_that_is_absent_is_known_to_be(server: ApiStandIn, cluster: Cluster) -> None:
    server.fail(404)
    assert not cluster.knows("ServiceMonitor")
    server.answers.append((200, {}, {"resources": [{"kind": "ServiceMonitor"}]}))
    assert cluster.knows("ServiceMonitor")


def test_every_request_is_told(server: ApiStandIn) -> None:
    told: list[tuple[str, str, str]] = []
    configuration = client.Configuration()
    configuration.host = server.url
    configuration.retries = False
    cluster = Cluster(
        client.ApiClient(configuration),
        observe=lambda *request: told.append(request),
        sleep=lambda _: None,
    )
    server.fail(503)
    cluster.get("Pod", "p", "ns")
    assert told == [("get", "Pod", "503"), ("get", "Pod", "200")]


def test_uids_are_listed_without_the_objects(server: ApiStandIn, cluster: Cluster) -> None:
    items = [{"metadata": {"uid": "a"}}, {"metadata": {"uid": "b"}}]
    server.answers.append((200, {}, {"metadata": {"resourceVersion": "7"}, "items": items}))
    assert cluster.list_uids("Pod", label_selector="x=y") == ({"a", "b"}, 7)
    ((verb, path, _, _),) = server.asked
    assert verb == "GET"
    assert path.startswith("/api/v1/pods?")
    assert "labelSelector=x%3Dy" in path
