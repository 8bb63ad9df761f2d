"""What kopf tells: objects into the index, whose they are into the queue. Nothing is done here.

No daemons, no timers, no handlers of creation or change: those would put a finalizer or an
annotation on resources. The index handlers let kopf hold back all events until every kind has
been listed once, so that the first reconcile sees all there is.
"""

import asyncio
import random
from collections.abc import Mapping
from typing import Any

import kopf

from glinthawk_operator.kinds import KINDS, Kind
from glinthawk_operator.logs import get_logger
from glinthawk_operator.manifests.names import FIELD_MANAGER, GROUP, MANAGED_LABEL, PLURAL, VERSION
from glinthawk_operator.process import Parts, Workers, spread_start

log = get_logger("handlers")

OWNED_KINDS = (
    *("StatefulSet", "Deployment", "Pod", "Service", "ConfigMap", "ServiceAccount"),
    *("PodDisruptionBudget", "NetworkPolicy"),
)
"""Kinds that are watched. Secrets are not: a watch would bring everybody's."""

WATCH_TIMEOUT_S = 300
GUARD_EVERY_S = 10.0


def register(registry: kopf.OperatorRegistry, parts: Parts, workers: Workers) -> None:
    """Put the operator's handlers on a registry."""
    _register_process(registry, parts, workers)
    _register_resources(registry, parts)
    for name in OWNED_KINDS:
        _register_owned(registry, parts, name, KINDS[name])
    if not parts.settings.namespaces:
        _register_nodes(registry, parts)  # a Role of a namespace cannot let nodes be read


def _register_process(registry: kopf.OperatorRegistry, parts: Parts, workers: Workers) -> None:
    guards: list[asyncio.Task[None]] = []

    @kopf.on.startup(registry=registry)
    async def start(settings: kopf.OperatorSettings, **_: Any) -> None:
        settings.posting.enabled = False
        settings.scanning.disabled = bool(parts.settings.namespaces)
        settings.watching.server_timeout = WATCH_TIMEOUT_S
        settings.watching.client_timeout = WATCH_TIMEOUT_S + 30
        settings.networking.request_timeout = WATCH_TIMEOUT_S + 60
        workers.start()
        guards.append(asyncio.create_task(_guard_watches(workers), name="watch-guard"))

    @kopf.on.cleanup(registry=registry)
    async def stop(**_: Any) -> None:
        for guard in guards:
            guard.cancel()
        await asyncio.to_thread(workers.stop)

    @kopf.on.login(registry=registry)
    def login(**options: Any) -> Any:
        return kopf.login_with_service_account(**options) or kopf.login_with_kubeconfig(**options)


def _register_resources(registry: kopf.OperatorRegistry, parts: Parts) -> None:
    @kopf.index(GROUP, VERSION, PLURAL, registry=registry, id="resources")
    def take_in(body: kopf.Body, **_: Any) -> None:
        parts.index.put_resource(_plain(body))

    @kopf.on.event(GROUP, VERSION, PLURAL, registry=registry, id="resource-events")
    def enqueue(event: Mapping[str, Any], body: kopf.Body, **_: Any) -> None:
        plain = _plain(body)
        if event["type"] == "DELETED":
            parts.queue.add(parts.index.remove_resource(plain))
            return
        key = parts.index.put_resource(plain)
        if event["type"] is None:
            spread_start(parts, key, random.random)
        else:
            parts.queue.add(key)


def _register_owned(registry: kopf.OperatorRegistry, parts: Parts, name: str, kind: Kind) -> None:
    place = (kind.group, kind.version, kind.plural)
    labels = {MANAGED_LABEL: FIELD_MANAGER}

    @kopf.index(*place, registry=registry, labels=labels, id=f"{kind.plural}-index")
    def take_in(body: kopf.Body, **_: Any) -> None:
        parts.index.put(name, _plain(body))

    @kopf.on.event(*place, registry=registry, labels=labels, id=f"{kind.plural}-events")
    def enqueue(event: Mapping[str, Any], body: kopf.Body, **_: Any) -> None:
        plain = _plain(body)
        is_gone = event["type"] == "DELETED"
        key = parts.index.remove(name, plain) if is_gone else parts.index.put(name, plain)
        # What the first lists bring belongs to resources that come anyway.
        if key is not None and event["type"] is not None:
            parts.queue.add(key)


def _register_nodes(registry: kopf.OperatorRegistry, parts: Parts) -> None:
    @kopf.index("", "v1", "nodes", registry=registry, id="nodes-index")
    def take_in(body: kopf.Body, **_: Any) -> None:
        parts.index.put_node(_plain(body))

    @kopf.on.event("", "v1", "nodes", registry=registry, id="nodes-events")
    def note(event: Mapping[str, Any], body: kopf.Body, **_: Any) -> None:
        # Nodes speak all the time; whose pods are on a lost one is looked at with each poll.
        if event["type"] == "DELETED":
            parts.index.remove_node(body)
            for key in parts.index.keys_on_node(body["metadata"]["name"]):
                parts.queue.add(key)
        else:
            parts.index.put_node(_plain(body))


async def _guard_watches(workers: Workers) -> None:
    """Let the process be started anew if a watch has ended for good.

    kopf takes a watch up again when the connection or the server fails; one that is refused, as
    while a role is being replaced, it gives up, and would hear nothing of that kind any more.
    """
    seen: set[str] = set()
    while True:
        await asyncio.sleep(GUARD_EVERY_S)
        alive = {
            name for task in asyncio.all_tasks() if (name := task.get_name()).startswith("watcher")
        }
        if seen - alive:
            log.error("watches_ended", watches=sorted(seen - alive))
            workers.fail()
        seen |= alive


def _plain(body: kopf.Body) -> dict[str, Any]:
    return dict(body)
