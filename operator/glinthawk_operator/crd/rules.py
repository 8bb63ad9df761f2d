"""What must hold between the fields of a spec: CEL rules that the API server evaluates.

A rule is for one part and sees only that part as `self`; with `oldSelf` it speaks about a change.
Defaults are filled in before, so a field with one is always there. `has` asks for the others.
Each message says what is wrong and what to do; `said` is the same with the values in it. Not with
whole numbers, though: the API server takes the length of string(1) for unbounded, and refuses it.
"""

from collections.abc import Mapping

from glinthawk_operator.crd.parts import (
    CacheSpec,
    GatewaySpec,
    MetricsSpec,
    ModelSpec,
    ServiceSpec,
    StorageSpec,
)
from glinthawk_operator.crd.pods import EnvironmentVariable, ResourcesSpec, TolerationSpec
from glinthawk_operator.crd.rule import (
    Rule,
    at_least_a_byte,
    at_least_a_mebibyte,
    bounds_in_order,
    keys_are_qualified,
    unchanged_class,
    unchanged_size,
)
from glinthawk_operator.crd.scaling import ScalingSpec
from glinthawk_operator.crd.spec import GlinthawkDeploymentSpec
from glinthawk_operator.crd.tiers import GpuTierSpec, KvCacheSpec, MemoryTierSpec
from glinthawk_operator.crd.values import Part

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
    keys_are_qualified("podLabels"),
    keys_are_qualified("podAnnotations"),
    keys_are_qualified("nodeSelector"),
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
    at_least_a_mebibyte("memoryOverhead"),
    *_PODS,
)

RULES: Mapping[type[Part], tuple[Rule, ...]] = {
    GlinthawkDeploymentSpec: _SPEC,
    ModelSpec: _MODEL,
    CacheSpec: (
        at_least_a_mebibyte("size"),
        unchanged_size("size", _COPY),
        unchanged_class(_COPY),
    ),
    GpuTierSpec: (
        at_least_a_mebibyte("gpuMemory"),
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
    KvCacheSpec: (at_least_a_mebibyte("memory"),),
    ScalingSpec: (bounds_in_order("minReplicas", "maxReplicas"),),
    GatewaySpec: (
        bounds_in_order("minLaneRows", "maxLaneRows"),
        at_least_a_byte("maxBodyBytes"),
        at_least_a_byte("maxFileBytes"),
        at_least_a_byte("maxLineBytes"),
        *_PODS,
    ),
    StorageSpec: (
        at_least_a_mebibyte("size"),
        unchanged_size("size", _COPY),
        unchanged_class(_COPY),
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
        keys_are_qualified("annotations"),
    ),
    MetricsSpec: (keys_are_qualified("labels"),),
    ResourcesSpec: (
        keys_are_qualified("requests"),
        keys_are_qualified("limits"),
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
