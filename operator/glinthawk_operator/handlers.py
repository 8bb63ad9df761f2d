"""What kopf tells: objects into the index, whose they are into the queue. Nothing is done here.

No daemons, no timers, no handlers of creation or change: those would put a finalizer or an
annotation on resources. The index handlers let kopf hold back all events until every kind has
been listed once, so that the first reconcile sees all there is. A watch that breaks is taken up
again; one that is refused for good ends the process, so that it is started anew.

Handlers are coroutines that never wait: kopf gives each call of a plain function to a thread,
which for thousands of objects at a start costs more than all else.
"""

import asyncio
from collections.abc import Mapping
from typing import Any

import kopf

from glinthawk_operator.index import NODE_KIND
from glinthawk_operator.kinds import KINDS, OWNED_KINDS, Kind
from glinthawk_operator.manifests.names import (
    FIELD_MANAGER,
    GROUP,
    KIND,
    MANAGED_LABEL,
    MANAGED_SELECTOR,
    PLURAL,
    VERSION,
)
from glinthawk_operator.process import Parts, Workers

WATCH_TIMEOUT_S = 300
_SEEN = "was_seen"


def register(registry: kopf.OperatorRegistry, parts: Parts, workers: Workers) -> None:
    """Put the operator's handlers on a registry."""
    _register_process(registry, parts, workers)
    _register_resources(registry, parts)
    for name in OWNED_KINDS:
        _register_owned(registry, parts, name, KINDS[name])
    if not parts.settings.namespaces:
        _register_nodes(registry, parts)  # a Role of a namespace cannot let nodes be read


def _register_process(registry: kopf.OperatorRegistry, parts: Parts, workers: Workers) -> None:
    @kopf.on.startup(registry=registry)
    async def start(settings: kopf.OperatorSettings, **_: Any) -> None:
        settings.posting.enabled = False
        settings.scanning.disabled = bool(parts.settings.namespaces)
        settings.watching.server_timeout = WATCH_TIMEOUT_S
        settings.watching.client_timeout = WATCH_TIMEOUT_S + 30
        settings.networking.request_timeout = WATCH_TIMEOUT_S + 60
        for name in OWNED_KINDS:
            kind = KINDS[name]
            place = (kind.group, kind.version, kind.plural)
            settings.watching.label_selectors[place] = MANAGED_SELECTOR
        workers.start()

    @kopf.on.cleanup(registry=registry)
    async def stop(**_: Any) -> None:
        await asyncio.to_thread(workers.stop)

    @kopf.on.login(registry=registry)
    def login(**options: Any) -> Any:
        return kopf.login_with_service_account(**options) or kopf.login_with_kubeconfig(**options)


def _register_resources(registry: kopf.OperatorRegistry, parts: Parts) -> None:
    @kopf.index(GROUP, VERSION, PLURAL, registry=registry, id="resources")
    async def take_in(body: kopf.Body, **_: Any) -> None:
        parts.index.put_resource(_plain(body))

    @kopf.on.event(GROUP, VERSION, PLURAL, registry=registry, id="resource-events")
    async def enqueue(event: Mapping[str, Any], body: kopf.Body, memo: kopf.Memo, **_: Any) -> None:
        _note_list(parts, KIND, event, memo)
        plain = _plain(body)
        if event["type"] == "DELETED":
            parts.queue.add(parts.index.remove_resource(plain))
            return
        key = parts.index.put_resource(plain)
        if event["type"] is None:
            parts.queue.add(key, after_s=parts.spread_s())
        else:
            parts.queue.add(key)


def _register_owned(registry: kopf.OperatorRegistry, parts: Parts, name: str, kind: Kind) -> None:
    place = (kind.group, kind.version, kind.plural)
    labels = {MANAGED_LABEL: FIELD_MANAGER}

    @kopf.index(*place, registry=registry, labels=labels, id=f"{kind.plural}-index")
    async def take_in(body: kopf.Body, **_: Any) -> None:
        parts.index.put(name, _plain(body))

    @kopf.on.event(*place, registry=registry, labels=labels, id=f"{kind.plural}-events")
    async def enqueue(event: Mapping[str, Any], body: kopf.Body, memo: kopf.Memo, **_: Any) -> None:
        _note_list(parts, name, event, memo)
        plain = _plain(body)
        is_gone = event["type"] == "DELETED"
        key = parts.index.remove(name, plain) if is_gone else parts.index.put(name, plain)
        # What the first lists bring belongs to resources that come anyway.
        if key is not None and event["type"] is not None:
            parts.queue.add(key)


def _register_nodes(registry: kopf.OperatorRegistry, parts: Parts) -> None:
    @kopf.index("", "v1", "nodes", registry=registry, id="nodes-index")
    async def take_in(body: kopf.Body, **_: Any) -> None:
        parts.index.put_node(_plain(body))

    @kopf.on.event("", "v1", "nodes", registry=registry, id="nodes-events")
    async def note(event: Mapping[str, Any], body: kopf.Body, memo: kopf.Memo, **_: Any) -> None:
        _note_list(parts, NODE_KIND, event, memo)
        # Nodes speak all the time; whose pods are on a lost one is looked at with each poll.
        if event["type"] == "DELETED":
            parts.index.remove_node(body)
            for key in parts.index.keys_on_node(body["metadata"]["name"]):
                parts.queue.add(key)
        else:
            parts.index.put_node(_plain(body))


def _note_list(parts: Parts, kind: str, event: Mapping[str, Any], memo: kopf.Memo) -> None:
    """Notice that a watch begins anew: it lists an object that was seen before.

    memo: of that object, kept while it is there.
    """
    if event["type"] is None and memo.get(_SEEN):
        parts.resync.note_list(kind)
    memo[_SEEN] = True


def _plain(body: kopf.Body) -> dict[str, Any]:
    return dict(body)
