"""What the watches have shown: resources, the objects that belong to them, and nodes.

Every reconcile reads from here, so that a cluster at rest is asked nothing. An object belongs to
a resource by its labels: `app.kubernetes.io/instance` within its namespace. Objects are dicts as
the API server sends them, and must not be changed.
"""

import threading
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from glinthawk_operator.manifests.names import HOST_LABEL, INSTANCE_LABEL, KIND, instance_label

Body = Mapping[str, Any]

NODE_KIND = "Node"


class ResourceKey(NamedTuple):
    """A resource, as the queue names it. instance: the value of its objects' label."""

    namespace: str
    instance: str


@dataclass(frozen=True)
class OwnedObjects:
    """A resource, None when it is gone, and its objects by kind and name."""

    resource: Body | None
    objects: Mapping[tuple[str, str], Body]

    def of_kind(self, kind: str) -> list[Body]:
        """Return the objects of one kind, by name."""
        return [self.objects[key] for key in sorted(self.objects) if key[0] == kind]

    def get(self, kind: str, name: str) -> Body | None:
        """Return one object, None if it is not there."""
        return self.objects.get((kind, name))


def resource_key(body: Body) -> ResourceKey:
    """Return the key of a GlinthawkDeployment."""
    metadata = body["metadata"]
    return ResourceKey(metadata["namespace"], instance_label(metadata["name"]))


def owner_key(body: Body) -> ResourceKey | None:
    """Return the key of the resource that an object belongs to, None if it says of none."""
    metadata = body["metadata"]
    instance = metadata.get("labels", {}).get(INSTANCE_LABEL)
    return None if instance is None else ResourceKey(metadata["namespace"], instance)


class ObjectIndex:
    """See the module. Any thread may call it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._resources: dict[ResourceKey, Body] = {}
        self._objects: dict[ResourceKey, dict[tuple[str, str], Body]] = {}
        self._nodes: dict[str, Body] = {}

    def put_resource(self, body: Body) -> ResourceKey:
        """Take a GlinthawkDeployment in; an older version than the known one changes nothing."""
        key = resource_key(body)
        with self._lock:
            if _is_newer(body, self._resources.get(key)):
                self._resources[key] = body
        return key

    def remove_resource(self, body: Body) -> ResourceKey:
        """Forget a GlinthawkDeployment, unless another of its name is there."""
        key = resource_key(body)
        with self._lock:
            if _is_same(body, self._resources.get(key)):
                del self._resources[key]
        return key

    def put(self, kind: str, body: Body, key: ResourceKey | None = None) -> ResourceKey | None:
        """Take an object in, and return whose it is. key: where its labels do not say it."""
        key = key or owner_key(body)
        if key is not None:
            with self._lock:
                objects = self._objects.setdefault(key, {})
                place = (kind, body["metadata"]["name"])
                if _is_newer(body, objects.get(place)):
                    objects[place] = body
        return key

    def remove(self, kind: str, body: Body, key: ResourceKey | None = None) -> ResourceKey | None:
        """Forget an object, unless another of its name is there; return whose it was."""
        key = key or owner_key(body)
        if key is not None:
            with self._lock:
                objects = self._objects.get(key, {})
                place = (kind, body["metadata"]["name"])
                if _is_same(body, objects.get(place)):
                    del objects[place]
                if not objects:
                    self._objects.pop(key, None)
        return key

    def put_node(self, body: Body) -> None:
        """Take a node in."""
        with self._lock:
            self._nodes[body["metadata"]["name"]] = body

    def remove_node(self, body: Body) -> None:
        """Forget a node, unless another of its name is there."""
        name = body["metadata"]["name"]
        with self._lock:
            if _is_same(body, self._nodes.get(name)):
                del self._nodes[name]

    def node(self, name: str) -> Body | None:
        """Return a node by its name or by its host label, None if it is gone."""
        with self._lock:
            known = self._nodes.get(name)
            return known if known is not None else self._node_of_host(name)

    def _node_of_host(self, host: str) -> Body | None:
        for body in self._nodes.values():
            if (body["metadata"].get("labels") or {}).get(HOST_LABEL) == host:
                return body
        return None

    def nodes(self) -> list[Body]:
        """Return all nodes."""
        with self._lock:
            return list(self._nodes.values())

    def keys_on_node(self, name: str) -> set[ResourceKey]:
        """Return the resources with a pod on a node."""
        with self._lock:
            return {
                key
                for key, objects in self._objects.items()
                for (kind, _), body in objects.items()
                if kind == "Pod" and body.get("spec", {}).get("nodeName") == name
            }

    def read(self, key: ResourceKey) -> OwnedObjects:
        """Return a resource and its objects as they are now."""
        with self._lock:
            return OwnedObjects(self._resources.get(key), dict(self._objects.get(key, {})))

    def sweep(
        self, kind: str, uids: Collection[str], version: int, namespace: str | None = None
    ) -> set[ResourceKey]:
        """Forget what a list of a kind does not show, and return whose it was.

        version: of the list. What is newer stays, for the list could not know it. namespace: that
        was listed, None for all.
        """

        def is_gone(body: Body) -> bool:
            metadata = body["metadata"]
            is_listed = namespace is None or metadata["namespace"] == namespace
            return is_listed and metadata["uid"] not in uids and _version(body) <= version

        with self._lock:
            if kind == NODE_KIND:
                gone = [name for name, body in self._nodes.items() if is_gone(body)]
                for name in gone:
                    del self._nodes[name]
                return set()
            if kind == KIND:
                keys = {key for key, body in self._resources.items() if is_gone(body)}
                for key in keys:
                    del self._resources[key]
                return keys
            places = [
                (key, place)
                for key, objects in self._objects.items()
                for place, body in objects.items()
                if place[0] == kind and is_gone(body)
            ]
            for key, place in places:
                del self._objects[key][place]
                if not self._objects[key]:
                    del self._objects[key]
            return {key for key, _ in places}

    def keys(self) -> set[ResourceKey]:
        """Return all resources that are there."""
        with self._lock:
            return set(self._resources)


def _is_same(body: Body, known: Body | None) -> bool:
    return known is not None and known["metadata"]["uid"] == body["metadata"]["uid"]


def _is_newer(body: Body, known: Body | None) -> bool:
    """Tell whether to believe `body` over what is known.

    Our own writes are taken in before the watch shows them, and the watch may bring older ones
    meanwhile. Versions of one object only grow; another uid is another object.
    """
    if known is None or not _is_same(body, known):
        return True
    return _version(body) >= _version(known)


def _version(body: Body) -> int:
    version = str(body["metadata"].get("resourceVersion", "0"))
    return int(version) if version.isdecimal() else 0
