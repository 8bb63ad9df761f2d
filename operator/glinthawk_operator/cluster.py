"""The API server, as the operator calls it: the only room that does.

Manifests go in and out as dicts. Every call has a deadline. What fails for the moment (429, 5xx,
a connection that breaks) is tried again within it, after as long as the server asks for; then it
is an error of our own tree (see `api_errors`), and so is everything else that fails. Kinds are
listed, not discovered: a restart asks the server nothing about itself.
"""

import json
import time
from collections.abc import Callable, Mapping
from typing import Any

from kubernetes import client as kubernetes_client
from kubernetes.dynamic import DynamicClient
from kubernetes.dynamic.exceptions import DynamicApiError
from kubernetes.dynamic.resource import Resource
from urllib3.exceptions import HTTPError

from glinthawk_operator.api_errors import translate
from glinthawk_operator.errors import ApiNotFound, ApiUnavailable
from glinthawk_operator.kinds import KINDS
from glinthawk_operator.manifests.names import FIELD_MANAGER, KIND

MERGE_PATCH = "application/merge-patch+json"
METADATA_ONLY = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json"
DEADLINE_S = 10.0
MAX_PAUSE_S = 3.0
_FIRST_PAUSE_S = 0.2


Body = dict[str, Any]
Observer = Callable[[str, str, str], None]


class Cluster:
    """Calls one API server. Any thread may.

    Args:
        api_client: the connection.
        deadline_s: of a call, with what is tried again.
        observe: told of every request: verb, kind, and status code or "none".
        clock, sleep: of the process.
    """

    def __init__(
        self,
        api_client: kubernetes_client.ApiClient,
        *,
        deadline_s: float = DEADLINE_S,
        observe: Observer = lambda verb, kind, code: None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._dynamic = DynamicClient(api_client, discoverer=_NoDiscovery)
        self._deadline_s = deadline_s
        self._observe = observe
        self._clock = clock
        self._sleep = sleep

    def apply(self, manifest: Mapping[str, Any]) -> Body:
        """Make an object say what the manifest says, by server-side apply; return it.

        Raises:
            ApiError: see errors.py, as of all calls here.
        """
        return self._call(
            "apply",
            manifest["kind"],
            lambda resource, options: self._dynamic.server_side_apply(
                resource,
                body=dict(manifest),
                name=manifest["metadata"]["name"],
                namespace=manifest["metadata"].get("namespace"),
                field_manager=FIELD_MANAGER,
                force_conflicts=True,
                **options,
            ),
            what=manifest["metadata"]["name"],
        )

    def create(self, manifest: Mapping[str, Any]) -> Body:
        """Make an object that is not there yet, and return it.

        Raises:
            ApiConflict: it is there already; nothing was changed.
        """
        return self._call(
            "create",
            manifest["kind"],
            lambda resource, options: self._dynamic.create(
                resource,
                body=dict(manifest),
                namespace=manifest["metadata"].get("namespace"),
                field_manager=FIELD_MANAGER,
                **options,
            ),
            what=manifest["metadata"].get("name", ""),
        )

    def delete(
        self,
        kind: str,
        name: str,
        namespace: str | None,
        *,
        uid: str | None,
        grace_s: int | None = None,
    ) -> None:
        """Delete an object, only if it still has the uid; one that is gone is no error."""
        options: Body = {"apiVersion": "v1", "kind": "DeleteOptions"}
        if uid is not None:
            options["preconditions"] = {"uid": uid}
        if grace_s is not None:
            options["gracePeriodSeconds"] = grace_s
        try:
            self._call(
                "delete",
                kind,
                lambda resource, request: self._dynamic.delete(
                    resource, name=name, namespace=namespace, body=options, **request
                ),
                what=name,
            )
        except ApiNotFound:
            return

    def annotate(
        self,
        kind: str,
        name: str,
        namespace: str,
        annotations: Mapping[str, str | None],
        *,
        uid: str,
    ) -> Body:
        """Set annotations of an object with that uid; None removes one."""
        body = {"metadata": {"uid": uid, "annotations": dict(annotations)}}
        return self._patch(kind, name, namespace, body)

    def scale(self, kind: str, name: str, namespace: str, replicas: int) -> Body:
        """Write the replicas of a workload through its scale subresource."""
        body = {"spec": {"replicas": replicas}}
        return self._patch(kind, name, namespace, body, subresource="scale")

    def patch_status(self, name: str, namespace: str, patch: Mapping[str, Any]) -> Body:
        """Change the status of a GlinthawkDeployment; None in the patch removes a field."""
        return self._patch(KIND, name, namespace, {"status": dict(patch)}, subresource="status")

    def get(self, kind: str, name: str, namespace: str | None = None) -> Body:
        """Return an object.

        Raises:
            ApiNotFound: it is not there.
        """
        return self._call(
            "get",
            kind,
            lambda resource, options: self._dynamic.get(
                resource, name=name, namespace=namespace, **options
            ),
            what=name,
        )

    def list_uids(
        self, kind: str, namespace: str | None = None, *, label_selector: str | None = None
    ) -> tuple[frozenset[str], int]:
        """Return the uids of what there is of a kind, and the version at which that was so.

        Of a namespace or all. It comes from the server's memory, and may be a little old.
        """
        answer = self._call(
            "list",
            kind,
            lambda resource, options: self._dynamic.get(
                resource,
                namespace=namespace,
                label_selector=label_selector,
                resource_version="0",
                header_params={"Accept": METADATA_ONLY},
                **options,
            ),
        )
        uids = frozenset(one["metadata"]["uid"] for one in answer.get("items") or [])
        return uids, int(answer["metadata"]["resourceVersion"])

    def replace(self, manifest: Mapping[str, Any]) -> Body:
        """Write an object over the version that the manifest names.

        Raises:
            ApiConflict: it was changed meanwhile.
        """
        return self._call(
            "update",
            manifest["kind"],
            lambda resource, options: self._dynamic.replace(
                resource,
                body=dict(manifest),
                name=manifest["metadata"]["name"],
                namespace=manifest["metadata"].get("namespace"),
                field_manager=FIELD_MANAGER,
                **options,
            ),
            what=manifest["metadata"]["name"],
        )

    def knows(self, kind: str) -> bool:
        """Tell whether the API server has a kind, such as one of an operator that may be absent."""
        known = KINDS[kind]
        try:
            answer = self._call(
                "discover",
                kind,
                lambda _, options: self._dynamic.request(
                    "get", f"/apis/{known.api_version}", **options
                ),
            )
        except ApiNotFound:
            return False
        return any(one.get("kind") == kind for one in answer.get("resources") or [])

    def _patch(
        self,
        kind: str,
        name: str,
        namespace: str,
        body: Mapping[str, Any],
        *,
        subresource: str | None = None,
    ) -> Body:
        part = "" if subresource is None else f"/{subresource}"
        return self._call(
            "patch",
            f"{kind}{part}",
            lambda resource, options: self._dynamic.request(
                "patch",
                resource.path(name=name, namespace=namespace) + part,
                body=dict(body),
                content_type=MERGE_PATCH,
                field_manager=FIELD_MANAGER,
                **options,
            ),
            what=name,
        )

    def _call(
        self,
        verb: str,
        kind: str,
        send: Callable[[Resource, Mapping[str, Any]], Any],
        *,
        what: str = "",
    ) -> Body:
        """Send a request until it is answered for good, or its time is over."""
        resource = _resource(self._dynamic, kind.partition("/")[0])
        end = self._clock() + self._deadline_s
        pause_s = _FIRST_PAUSE_S
        while True:
            left_s = max(0.5, end - self._clock())
            try:
                # All of these may be sent twice: a create that was lost comes back as a conflict.
                answer = send(resource, {"_request_timeout": left_s, "serialize": False})
                self._observe(verb, kind, str(answer.status))
                return dict(json.loads(answer.data))
            except (DynamicApiError, HTTPError, OSError, ValueError) as foreign:
                error = translate(foreign, f"{verb} {kind} {what}".rstrip())
                self._observe(verb, kind, str(error.status or "none"))
                if not isinstance(error, ApiUnavailable):
                    raise error from foreign
                pause_s = error.retry_after_s or pause_s
                if pause_s > MAX_PAUSE_S or self._clock() + pause_s >= end:
                    raise error from foreign
            self._sleep(pause_s)
            pause_s *= 2


class _NoDiscovery:
    """In the place of the client's discovery, which asks for every group at each start."""

    def __init__(self, client: object, cache_file: object) -> None:
        pass


def _resource(client: DynamicClient, kind: str) -> Resource:
    known = KINDS[kind]
    return Resource(
        prefix="apis" if known.group else "api",
        group=known.group,
        api_version=known.version,
        kind=kind,
        namespaced=known.is_namespaced,
        name=known.plural,
        client=client,
    )
