"""What must hold between the fields of a spec: CEL rules that the API server evaluates.

A rule is for one part and sees only that part as `self`; with `oldSelf` it speaks about a change.
Defaults are filled in before, so a field with one is always there. `has` asks for the others.
Each message says what is wrong and what to do; `said` is the same with the values in it. Not with
whole numbers, though: the API server takes the length of string(1) for unbounded, and refuses it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from glinthawk_operator.crd.parts import (
    CacheSpec,
    GatewaySpec,
    MetricsSpec,
    ModelSpec,
    ServiceSpec,
    StorageSpec,
)
from glinthawk_operator.crd.pods import EnvironmentVariable, ResourcesSpec, TolerationSpec
from glinthawk_operator.crd.scaling import ScalingSpec
from glinthawk_operator.crd.spec import GlinthawkDeploymentSpec
from glinthawk_operator.crd.tiers import GpuTierSpec, KvCacheSpec, MemoryTierSpec
from glinthawk_operator.crd.values import Part

Cause = Literal["FieldValueInvalid", "FieldValueForbidden", "FieldValueRequired"]


@dataclass(frozen=True)
class Rule:
    """One rule.

    holds: CEL that is true of a good part. message: for one that is not. said: CEL that gives the
    message with the actual values, None where there is nothing to add. field: below the part, to
    which the message belongs.
    """

    holds: str
    message: str
    said: str | None = None
    field: str | None = None
    cause: Cause = "FieldValueInvalid"


_MEBIBYTE = "quantity('1Mi')"
_KEY = "^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$"


def _at_least_a_mebibyte(field: str) -> Rule:
    """A size in bytes; what is smaller is a unit forgotten, or an m meant as M."""
    return Rule(
        holds=f"quantity(string(self.{field})).compareTo({_MEBIBYTE}) >= 0",
        message=f"{field} is below 1Mi: write it with a unit, like 16Gi (m is a thousandth)",
        said=f"'{field} is ' + string(self.{field}) + ' bytes, below 1Mi: write it with a unit, "
        "like 16Gi (m is a thousandth)'",
        field=field,
    )


def _at_least_a_byte(field: str) -> Rule:
    return Rule(
        holds=f"quantity(string(self.{field})).compareTo(quantity('1')) >= 0",
        message=f"{field} is below one byte: write it like 16Mi (m is a thousandth)",
        field=field,
    )


def _unchanged_size(field: str, way_out: str) -> Rule:
    return Rule(
        holds=f"quantity(string(self.{field})).compareTo(quantity(string(oldSelf.{field}))) == 0",
        message=f"{field} cannot change once the volumes exist: {way_out}",
        field=field,
        cause="FieldValueForbidden",
    )


def _unchanged_class(way_out: str) -> Rule:
    name = "storageClassName"
    return Rule(
        holds=f"has(self.{name}) == has(oldSelf.{name}) && "
        f"(!has(self.{name}) || self.{name} == oldSelf.{name})",
        message=f"{name} cannot change once the volumes exist: {way_out}",
        cause="FieldValueForbidden",
    )


def _keys_are_qualified(field: str) -> Rule:
    return Rule(
        holds=f"!has(self.{field}) || self.{field}.all(key, size(key) <= 317 && "
        f"key.matches('{_KEY}'))",
        message=f"{field} has a key that Kubernetes does not take: write it like team or "
        "example.com/team, of letters, digits, dots and dashes",
        field=field,
    )


def _bounds_in_order(low: str, high: str) -> Rule:
    return Rule(
        holds=f"self.{low} <= self.{high}",
        message=f"{low} is above {high}: lower {low} or raise {high}",
        field=low,
    )


_COPY = "make another GlinthawkDeployment and move over to it"

_PODS = (
    Rule(
        holds="!has(self.podLabels) || self.podLabels.all(key, "
        "!key.startsWith('app.kubernetes.io/') && !key.startsWith('glinthawk.dev/'))",
        message="podLabels holds a label of the operator: leave out those that begin with "
        "app.kubernetes.io/ or glinthawk.dev/, by which it finds its pods",
        field="podLabels",
        cause="FieldValueForbidden",
    ),
    _keys_are_qualified("podLabels"),
    _keys_are_qualified("podAnnotations"),
    _keys_are_qualified("nodeSelector"),
)

_SPEC = (
    Rule(
        holds="!(self.model.dtype in ['float16', 'bfloat16'] && "
        "self.memoryTier.kvCache.dtype == 'float32')",
        message="memoryTier.kvCache.dtype is float32 with a 16-bit model.dtype: K and V come in "
        "16 bits, so this takes twice the memory and gains nothing; set it to auto",
        said="'memoryTier.kvCache.dtype is float32 and model.dtype is ' + self.model.dtype + "
        "': K and V come in 16 bits, so this takes twice the memory and gains nothing; set "
        "memoryTier.kvCache.dtype to auto'",
        field="memoryTier.kvCache.dtype",
    ),
    Rule(
        holds="!(self.model.dtype == 'bfloat16' && self.memoryTier.kvCache.dtype == 'float16')",
        message="memoryTier.kvCache.dtype is float16 and model.dtype is bfloat16, whose numbers "
        "reach beyond float16 and would overflow: set memoryTier.kvCache.dtype to auto",
        field="memoryTier.kvCache.dtype",
    ),
)

_MODEL = (
    Rule(
        holds="self.source.matches('^hf://[A-Za-z0-9][-A-Za-z0-9_.]*/[-A-Za-z0-9_.]+$') || "
        "(self.source.matches('^pvc://[a-z0-9]([-a-z0-9.]*[a-z0-9])?(/[^/]+)*/?$') && "
        "!self.source.matches('/[.][.](/|$)'))",
        message="source is no model: write hf://organisation/name for one of a hub, or "
        "pvc://claim/folder for one in a volume of this namespace",
        said="'source is ' + self.source + ', which is no model: write hf://organisation/name for "
        "one of a hub, or pvc://claim/folder for one in a volume of this namespace'",
        field="source",
    ),
    Rule(
        holds="!self.source.startsWith('pvc://') || "
        "!(has(self.revision) || has(self.endpoint) || has(self.credentialsSecret))",
        message="revision, endpoint and credentialsSecret are for a model of a hub, and source is "
        "pvc://: remove them, or write hf://organisation/name as source",
        field="source",
        cause="FieldValueForbidden",
    ),
    Rule(
        holds="self.source == oldSelf.source",
        message=f"source cannot change, since batches would go on with another model: {_COPY}; "
        "revision may change",
        said="'source is ' + oldSelf.source + ' and cannot become ' + self.source + ', since "
        f"batches would go on with another model: {_COPY}; revision may change'",
        field="source",
        cause="FieldValueForbidden",
    ),
)

_MEMORY_TIER = (
    Rule(
        holds="self.scaling.mode != 'Auto' || oldSelf.scaling.mode != 'Auto' || "
        "!has(self.replicas) || (has(oldSelf.replicas) && self.replicas == oldSelf.replicas)",
        message="replicas cannot change while scaling.mode is Auto, in which the operator chooses "
        "the number of workers: change scaling.minReplicas and maxReplicas, or set scaling.mode "
        "to Manual or External",
        field="replicas",
        cause="FieldValueForbidden",
    ),
    Rule(
        holds="self.scaling.mode == 'Auto' || has(self.replicas)",
        message="replicas is missing: scaling.mode Manual and External need it; set "
        "memoryTier.replicas, for instance to the present status.memoryTier.replicas",
        said="'replicas is missing: scaling.mode ' + self.scaling.mode + ' needs it; set "
        "memoryTier.replicas, for instance to the present status.memoryTier.replicas'",
        field="replicas",
        cause="FieldValueRequired",
    ),
    Rule(
        holds="self.scaling.mode == 'Auto' || !has(self.replicas) || "
        "(self.replicas >= self.scaling.minReplicas && "
        "self.replicas <= self.scaling.maxReplicas)",
        message="replicas is not within scaling.minReplicas and maxReplicas: change it, or them",
        field="replicas",
    ),
    Rule(
        holds="(!has(self.resources.requests) || !('memory' in self.resources.requests)) && "
        "(!has(self.resources.limits) || !('memory' in self.resources.limits))",
        message="resources names memory, which for a worker is kvCache.memory and memoryOverhead "
        "together: remove it, and set those",
        field="resources",
        cause="FieldValueForbidden",
    ),
    _at_least_a_mebibyte("memoryOverhead"),
    *_PODS,
)

RULES: Mapping[type[Part], tuple[Rule, ...]] = {
    GlinthawkDeploymentSpec: _SPEC,
    ModelSpec: _MODEL,
    CacheSpec: (
        _at_least_a_mebibyte("size"),
        _unchanged_size("size", _COPY),
        _unchanged_class(_COPY),
    ),
    GpuTierSpec: (
        _at_least_a_mebibyte("gpuMemory"),
        Rule(
            holds="(!has(self.resources.requests) || !(self.gpuResource in "
            "self.resources.requests)) && (!has(self.resources.limits) || "
            "!(self.gpuResource in self.resources.limits))",
            message="resources names the gpuResource, of which each stage gets one by itself: "
            "remove it",
            field="resources",
            cause="FieldValueForbidden",
        ),
        *_PODS,
    ),
    MemoryTierSpec: _MEMORY_TIER,
    KvCacheSpec: (_at_least_a_mebibyte("memory"),),
    ScalingSpec: (_bounds_in_order("minReplicas", "maxReplicas"),),
    GatewaySpec: (
        _bounds_in_order("minLaneRows", "maxLaneRows"),
        _at_least_a_byte("maxBodyBytes"),
        _at_least_a_byte("maxFileBytes"),
        _at_least_a_byte("maxLineBytes"),
        *_PODS,
    ),
    StorageSpec: (
        _at_least_a_mebibyte("size"),
        _unchanged_size("size", _COPY),
        _unchanged_class(_COPY),
    ),
    ServiceSpec: (
        Rule(
            holds="self.port != self.grpcPort",
            message="port and grpcPort are the same: give each its own",
            field="grpcPort",
        ),
        Rule(
            holds="self.type == 'LoadBalancer' || "
            "!(has(self.loadBalancerClass) || has(self.loadBalancerSourceRanges))",
            message="loadBalancerClass and loadBalancerSourceRanges need type LoadBalancer: set "
            "it, or remove them",
            field="type",
        ),
        _keys_are_qualified("annotations"),
    ),
    MetricsSpec: (_keys_are_qualified("labels"),),
    ResourcesSpec: (
        _keys_are_qualified("requests"),
        _keys_are_qualified("limits"),
        Rule(
            holds="!has(self.requests) || !has(self.limits) || self.requests.all(name, "
            "!(name in self.limits) || quantity(string(self.requests[name])).compareTo("
            "quantity(string(self.limits[name]))) <= 0)",
            message="requests asks for more than limits allows: lower the request or raise the "
            "limit of that resource",
            field="requests",
        ),
    ),
    TolerationSpec: (
        Rule(
            holds="self.operator == 'Equal' || !has(self.value)",
            message="a toleration with operator Exists takes no value: remove it, or set operator "
            "to Equal",
            field="value",
        ),
        Rule(
            holds="has(self.key) || self.operator == 'Exists'",
            message="a toleration without a key is for every taint, and needs operator Exists: "
            "set it, or give the key",
            field="operator",
        ),
        Rule(
            holds="!has(self.tolerationSeconds) || (has(self.effect) && "
            "self.effect == 'NoExecute')",
            message="tolerationSeconds is for the effect NoExecute: set it, or remove the seconds",
            field="tolerationSeconds",
        ),
    ),
    EnvironmentVariable: (
        Rule(
            holds="!self.name.startsWith('GLINTHAWK_')",
            message="GLINTHAWK_ variables are the operator's: set the field of this resource "
            "instead",
            said="'the variable ' + self.name + ' is the operator\\'s: set the field of this "
            "resource instead'",
            field="name",
            cause="FieldValueForbidden",
        ),
    ),
}
"""By the part that they are about; a part that is not here has no rules."""
