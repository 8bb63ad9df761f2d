"""Names and labels of what belongs to a resource: each a pure function of the resource's name.

A name may be 253 characters long and hold dots, that of a Service only 63 without. What is too
long, or holds what must not be there, is cut and gets a hash of the whole, so that two resources
never share a child.
"""

import hashlib
import re

GROUP = "glinthawk.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
KIND = "GlinthawkDeployment"
PLURAL = "glinthawkdeployments"
FIELD_MANAGER = "glinthawk-operator"

NAME_LABEL = "app.kubernetes.io/name"
INSTANCE_LABEL = "app.kubernetes.io/instance"
COMPONENT_LABEL = "app.kubernetes.io/component"
MANAGED_LABEL = "app.kubernetes.io/managed-by"
VERSION_LABEL = "app.kubernetes.io/version"
HOST_LABEL = "kubernetes.io/hostname"
APP_NAME = "glinthawk"
MANAGED_SELECTOR = f"{MANAGED_LABEL}={FIELD_MANAGER}"

APPLIED_ANNOTATION = f"{GROUP}/applied"
"""Hash of the manifest that was last applied to a child."""

CONFIG_ANNOTATION = f"{GROUP}/config"
"""On pods: hash of the configuration that they were started with."""

TEMPLATE_ANNOTATION = f"{GROUP}/template"
"""On pods: hash of the template that they were made from."""

DRAIN_STARTED_ANNOTATION = f"{GROUP}/drain-started"
"""On pods of workers: when they were chosen to go."""

DRAIN_FAILED_ANNOTATION = f"{GROUP}/drain-failed"
"""On pods of workers: when a drain that did not end was taken back."""

DELETION_COST_ANNOTATION = "controller.kubernetes.io/pod-deletion-cost"

GATEWAY = "gateway"
STAGE = "stage"
ATTENTION = "attention"
COMPONENTS = (GATEWAY, STAGE, ATTENTION)

MAX_LABEL = 63
MAX_WORKLOAD = 52
"""A StatefulSet's name and 11 more characters must fit a label of its pods."""

_HASH_LENGTH = 8


def short_hash(text: str, length: int = _HASH_LENGTH) -> str:
    """Return the first hexadecimal digits of a text's SHA-256."""
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def instance_label(name: str) -> str:
    """Return the value of the instance label for a resource's name; no two share one."""
    return _fit(name, name, MAX_LABEL)


def child_name(resource: str, suffix: str = "") -> str:
    """Return the name of a resource's child: a DNS label of at most 52 characters."""
    base = re.sub(r"[^a-z0-9-]", "-", resource)
    if not base[0].isalpha():
        base = f"g{base}"
    ending = f"-{suffix}" if suffix else ""
    is_changed = base != resource
    room = MAX_WORKLOAD - len(ending)
    if is_changed or len(base) > room:
        head = base[: room - _HASH_LENGTH - 1].rstrip("-")
        base = f"{head}-{short_hash(resource)}"
    return base + ending


def selector_labels(resource: str, component: str) -> dict[str, str]:
    """Return the labels by which a component's pods are found; they never change."""
    return {
        NAME_LABEL: APP_NAME,
        INSTANCE_LABEL: instance_label(resource),
        COMPONENT_LABEL: component,
    }


def object_labels(resource: str, component: str) -> dict[str, str]:
    """Return the labels of every child."""
    return {**selector_labels(resource, component), MANAGED_LABEL: FIELD_MANAGER}


def _fit(text: str, identity: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    return f"{text[: limit - _HASH_LENGTH - 1].rstrip('-.')}-{short_hash(identity)}"
