"""Does what was planned: one call for each action, and keeps what came back in the index.

What the API server refuses for good (a quota, a field that cannot change) is said and passed over,
so that it holds up nothing else; what fails for the moment ends the turn.
"""

import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from glinthawk_operator.cluster import Cluster
from glinthawk_operator.errors import (
    ApiConflict,
    ApiForbidden,
    ApiInvalid,
    ApiNotFound,
    GatewayError,
)
from glinthawk_operator.gateway_client import GatewayClient
from glinthawk_operator.index import ObjectIndex, OwnedObjects, ResourceKey
from glinthawk_operator.kinds import OWNED_KINDS
from glinthawk_operator.logs import get_logger
from glinthawk_operator.manifests.names import (
    API_VERSION,
    APPLIED_ANNOTATION,
    KIND,
    instance_label,
)
from glinthawk_operator.reconcile.actions import (
    Action,
    Annotate,
    Announce,
    Apply,
    CancelDrain,
    Create,
    Delete,
    Drain,
    Scale,
)

log = get_logger("executor")

EVENT_AGAIN_S = 3600.0
MAX_NOTE = 1000


@dataclass
class Marks:
    """What one operator remembers of its writes to one resource's objects.

    applied: by kind and name, the manifest's hash and the version that came of it. announced: when
    an Event was last written.
    """

    applied: dict[tuple[str, str], tuple[str, str]] = field(default_factory=dict)
    announced: dict[tuple[str, str, float | None], float] = field(default_factory=dict)


@dataclass(frozen=True)
class Target:
    """Whose actions they are."""

    name: str
    namespace: str
    uid: str
    owned: OwnedObjects
    gateway: GatewayClient | None
    marks: Marks


class Executor:
    """See the module.

    Args:
        cluster: the API server.
        index: where what came back is kept.
        reporter: name of this operator in Events.
        observe: told of each action done.
        clock: seconds since 1970.
    """

    def __init__(
        self,
        cluster: Cluster,
        index: ObjectIndex,
        *,
        reporter: str,
        observe: Callable[[str], None],
        clock: Callable[[], float],
    ) -> None:
        self._cluster = cluster
        self._index = index
        self._reporter = reporter
        self._observe = observe
        self._clock = clock

    def run(self, actions: Iterable[Action], target: Target) -> tuple[str, ...]:
        """Do actions in order, and return in words what was refused.

        Raises:
            ApiError: the API server fails for the moment; what is left is done next time.
        """
        refused = []
        for action in actions:
            try:
                if self._do(action, target):
                    kind = type(action).__name__
                    self._observe(kind)
                    log.info(
                        "done",
                        action=kind,
                        namespace=target.namespace,
                        deployment=target.name,
                        **_describe(action),
                    )
            except (ApiInvalid, ApiForbidden) as error:
                refused.append(str(error))
                log.warning("refused", deployment=target.name, error=str(error))
            except (ApiConflict, ApiNotFound) as error:
                # The watches are behind; the next turn sees what is there.
                log.info("outdated", deployment=target.name, error=str(error))
            except GatewayError as error:
                log.warning("gateway_failed", deployment=target.name, error=str(error))
        return tuple(refused)

    def _do(self, action: Action, target: Target) -> bool:
        """Do one action; return whether anything was asked of anyone."""
        match action:
            case Create(manifest):
                self._keep(manifest["kind"], self._cluster.create(manifest))
            case Apply(manifest):
                return self._apply(dict(manifest), target)
            case Delete(kind, name, uid, grace_s):
                self._cluster.delete(kind, name, target.namespace, uid=uid, grace_s=grace_s)
                self._forget(kind, name, target)
            case Annotate(name, uid, annotations):
                body = self._cluster.annotate("Pod", name, target.namespace, annotations, uid=uid)
                self._keep("Pod", body)
            case Scale(name, replicas):
                self._cluster.scale("Deployment", name, target.namespace, replicas)
            case Drain(worker, deadline_s):
                if target.gateway is None:
                    return False
                target.gateway.drain(worker, deadline_s)
            case CancelDrain(worker):
                if target.gateway is None:
                    return False
                target.gateway.cancel_drain(worker)
            case Announce():
                return self._announce(action, target)
        return True

    def _apply(self, manifest: dict[str, Any], target: Target) -> bool:
        """Apply, unless just this was applied and the object is still the one that came of it.

        The API server may write a value in a way that does not look like what was wanted.
        """
        place = (manifest["kind"], manifest["metadata"]["name"])
        wanted = manifest["metadata"]["annotations"][APPLIED_ANNOTATION]
        live = target.owned.get(*place)
        version = None if live is None else live["metadata"]["resourceVersion"]
        if live is not None and target.marks.applied.get(place) == (wanted, version):
            return False
        body = self._cluster.apply(manifest)
        target.marks.applied[place] = (wanted, body["metadata"]["resourceVersion"])
        self._keep(manifest["kind"], body)
        return True

    def _keep(self, kind: str, body: dict[str, Any]) -> None:
        self._index.put(kind, body)

    def _forget(self, kind: str, name: str, target: Target) -> None:
        """Take what was deleted out of the index where no watch will."""
        body = target.owned.get(kind, name)
        if kind not in OWNED_KINDS and body is not None:
            key = ResourceKey(target.namespace, instance_label(target.name))
            self._index.remove(kind, body, key)

    def _announce(self, action: Announce, target: Target) -> bool:
        now_s = self._clock()
        key = (action.reason, action.message, action.at_s)
        announced = target.marks.announced
        if now_s - announced.get(key, -EVENT_AGAIN_S) < EVENT_AGAIN_S:
            return False
        for old in [one for one, when in announced.items() if now_s - when > EVENT_AGAIN_S]:
            del announced[old]
        announced[key] = now_s
        self._cluster.create(
            {
                "apiVersion": "events.k8s.io/v1",
                "kind": "Event",
                "metadata": {
                    "name": f"{target.name[:200]}.{uuid.uuid4().hex[:16]}",
                    "namespace": target.namespace,
                },
                "eventTime": datetime.fromtimestamp(now_s, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
                "type": "Warning" if action.is_warning else "Normal",
                "reason": action.reason,
                "action": "Reconcile",
                "note": action.message[:MAX_NOTE],
                "reportingController": "glinthawk.dev/operator",
                "reportingInstance": self._reporter[:128],
                "regarding": {
                    "apiVersion": API_VERSION,
                    "kind": KIND,
                    "name": target.name,
                    "namespace": target.namespace,
                    "uid": target.uid,
                },
            }
        )
        return True


def _describe(action: Action) -> dict[str, Any]:
    match action:
        case Create(manifest) | Apply(manifest):
            return {"kind": manifest["kind"], "object": manifest["metadata"]["name"]}
        case Delete(kind, name):
            return {"kind": kind, "object": name}
        case Annotate(name):
            return {"object": name}
        case Scale(name, replicas):
            return {"object": name, "replicas": replicas}
        case Drain(worker) | CancelDrain(worker):
            return {"worker": worker}
        case Announce(reason, message):
            return {"reason": reason, "note": message}
