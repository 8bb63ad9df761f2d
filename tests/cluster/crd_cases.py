"""For each rule of the resource a spec that breaks it, by one change of a good one."""

from dataclasses import dataclass
from typing import Any

from factories_resource import ABSENT, Document
from glinthawk_operator.crd.rule import Rule
from glinthawk_operator.crd.rules import RULES
from glinthawk_operator.crd.spec import (
    CacheSpec,
    EnvironmentVariable,
    GatewaySpec,
    GlinthawkDeploymentSpec,
    GpuTierSpec,
    KvCacheSpec,
    MemoryTierSpec,
    MetricsSpec,
    ModelSpec,
    Part,
    ResourcesSpec,
    ScalingSpec,
    ServiceSpec,
    StorageSpec,
    TolerationSpec,
)


@dataclass(frozen=True)
class Case:
    """A bad spec.

    words: of the message of the one rule that it breaks. before: the good spec that it is a change
    of, None for a resource that is made anew. said: in the answer, beside or in place of the
    message.
    """

    part: type[Part]
    words: str
    bad: Document
    before: Document | None = None
    said: str | None = None

    @property
    def rule(self) -> Rule:
        (found,) = [one for one in RULES[self.part] if self.words in one.message]
        return found


def build_pod_cases(tier: str, part: type[Part]) -> list[Case]:
    """Return what a tier refuses to be told of its pods."""
    bad: dict[str, tuple[str, Any]] = {
        "label of the operator": ("podLabels", {"glinthawk.dev/x": "y"}),
        "podLabels has a key": ("podLabels", {"-x": "y"}),
        "podAnnotations has a key": ("podAnnotations", {"a b": "y"}),
        "nodeSelector has a key": ("nodeSelector", {"x/": "y"}),
    }
    return [Case(part, words, {f"{tier}.{name}": value}) for words, (name, value) in bad.items()]


MANUAL = {
    "memoryTier.replicas": 2,
    "memoryTier.scaling": {"mode": "Manual", "minReplicas": 1, "maxReplicas": 3},
}
AUTO = {
    "memoryTier.replicas": 2,
    "memoryTier.scaling": {"mode": "Auto", "minReplicas": 1, "maxReplicas": 3},
}
CLASS = {"gateway.storage.storageClassName": "fast", "model.cache.storageClassName": "fast"}
TOLERATION = {"operator": "Exists", "key": "x"}

CASES = [
    Case(
        GlinthawkDeploymentSpec,
        "twice the memory",
        {"model.dtype": "float16", "memoryTier.kvCache.dtype": "float32"},
        said="model.dtype is float16",
    ),
    Case(
        GlinthawkDeploymentSpec,
        "would overflow",
        {"model.dtype": "bfloat16", "memoryTier.kvCache.dtype": "float16"},
    ),
    *(
        Case(ModelSpec, "is no model", {"model.source": source}, said=f"source is {source}")
        for source in ("hf://name-alone", "s3://bucket/name", "pvc://Claim", "pvc://a/../b")
    ),
    *(
        Case(ModelSpec, "are for a model of a hub", {"model.source": "pvc://a", **extra})
        for extra in (
            {"model.revision": "main"},
            {"model.endpoint": "http://hub"},
            {"model.credentialsSecret": "token"},
        )
    ),
    Case(
        ModelSpec,
        "source cannot change",
        {"model.source": "hf://org/b"},
        before={"model.source": "hf://org/a"},
        said="source is hf://org/a and cannot become hf://org/b",
    ),
    Case(CacheSpec, "below 1Mi", {"model.cache.size": "50"}, said="size is 50 bytes"),
    Case(CacheSpec, "size cannot change", {"model.cache.size": "60Gi"}, before={}),
    Case(
        CacheSpec,
        "storageClassName cannot change",
        {"model.cache.storageClassName": "slow"},
        before={"model.cache.storageClassName": "fast"},
    ),
    Case(StorageSpec, "below 1Mi", {"gateway.storage.size": "20m"}, said="size is 20m bytes"),
    Case(StorageSpec, "size cannot change", {"gateway.storage.size": "30Gi"}, before={}),
    Case(
        StorageSpec,
        "storageClassName cannot change",
        {},
        before={"gateway.storage.storageClassName": "fast"},
    ),
    Case(GpuTierSpec, "below 1Mi", {"gpuTier.gpuMemory": 0}, said="gpuMemory is 0 bytes"),
    Case(
        GpuTierSpec,
        "names the gpuResource",
        {"gpuTier.resources.limits": {"nvidia.com/gpu": 2}},
    ),
    Case(
        KvCacheSpec,
        "below 1Mi",
        {"memoryTier.kvCache.memory": "512m"},
        said="memory is 512m bytes, below 1Mi",
    ),
    Case(ScalingSpec, "above maxReplicas", {"memoryTier.scaling.minReplicas": 2}),
    Case(
        MemoryTierSpec,
        "while scaling.mode is Auto",
        {**AUTO, "memoryTier.replicas": 3},
        before=AUTO,
    ),
    Case(
        MemoryTierSpec,
        "while scaling.mode is Auto",
        AUTO,
        before={**AUTO, "memoryTier.replicas": ABSENT},
    ),
    *(
        Case(
            MemoryTierSpec,
            "replicas is missing",
            {"memoryTier.scaling.mode": mode},
            said=f"scaling.mode {mode} needs it",
        )
        for mode in ("Manual", "External")
    ),
    *(
        Case(
            MemoryTierSpec,
            "not within",
            {
                "memoryTier.replicas": replicas,
                "memoryTier.scaling": {"mode": "External", "minReplicas": 2, "maxReplicas": 3},
            },
        )
        for replicas in (1, 4)
    ),
    Case(
        MemoryTierSpec,
        "resources names memory",
        {"memoryTier.resources.requests": {"memory": "1Gi"}},
    ),
    Case(
        MemoryTierSpec,
        "below 1Mi",
        {"memoryTier.memoryOverhead": "1k"},
        said="memoryOverhead is 1k bytes",
    ),
    Case(GatewaySpec, "above maxLaneRows", {"gateway.minLaneRows": 257}),
    Case(GatewaySpec, "maxBodyBytes is below", {"gateway.maxBodyBytes": "16m"}),
    Case(GatewaySpec, "maxFileBytes is below", {"gateway.maxFileBytes": 0}),
    Case(GatewaySpec, "maxLineBytes is below", {"gateway.maxLineBytes": "0.5"}),
    Case(ServiceSpec, "are the same", {"gateway.service": {"port": 80, "grpcPort": 80}}),
    Case(
        ServiceSpec,
        "need type LoadBalancer",
        {"gateway.service.loadBalancerSourceRanges": ["10.0.0.0/8"]},
    ),
    Case(ServiceSpec, "annotations has a key", {"gateway.service.annotations": {"a b": "c"}}),
    Case(MetricsSpec, "labels has a key", {"metrics.labels": {"a b": "c"}}),
    Case(ResourcesSpec, "requests has a key", {"gateway.resources.requests": {"a b": 1}}),
    Case(ResourcesSpec, "limits has a key", {"gateway.resources.limits": {"a b": 1}}),
    Case(
        ResourcesSpec,
        "more than limits allows",
        {"gateway.resources": {"requests": {"cpu": "1500m"}, "limits": {"cpu": 1}}},
    ),
    Case(
        TolerationSpec,
        "takes no value",
        {"gateway.tolerations": [{**TOLERATION, "value": "y"}]},
    ),
    Case(TolerationSpec, "for every taint", {"gateway.tolerations": [{"value": "y"}]}),
    Case(
        TolerationSpec,
        "for the effect NoExecute",
        {"gateway.tolerations": [{**TOLERATION, "tolerationSeconds": 5}]},
    ),
    Case(
        EnvironmentVariable,
        "are the operator's",
        {"gateway.env": [{"name": "GLINTHAWK_PORT", "value": "1"}]},
        said="the variable GLINTHAWK_PORT",
    ),
    *build_pod_cases("gpuTier", GpuTierSpec),
    *build_pod_cases("memoryTier", MemoryTierSpec),
    *build_pod_cases("gateway", GatewaySpec),
]

GOOD: dict[str, tuple[Document | None, Document]] = {
    "the smallest": (None, {}),
    "a volume's model": (None, {"model.source": "pvc://models/llama/8b.gguf"}),
    "sizes at their bounds": (
        None,
        {
            "gpuTier.gpuMemory": 1 << 20,
            "memoryTier.memoryOverhead": "1Mi",
            "gateway.maxLineBytes": 1,
        },
    ),
    "replicas at a bound": (None, {**MANUAL, "memoryTier.replicas": 3}),
    "another revision": ({"model.revision": "a"}, {"model.revision": "b"}),
    "the same size in another unit": ({}, {"model.cache.size": "51200Mi"}),
    "volumes kept after all": (CLASS, {**CLASS, "model.cache.whenDeleted": "Retain"}),
    "replicas left out in Auto": (AUTO, {**AUTO, "memoryTier.replicas": ABSENT}),
    "replicas unchanged in Auto": (AUTO, {**AUTO, "memoryTier.scaling.maxReplicas": 4}),
    "Manual to Auto": (MANUAL, AUTO),
    "Auto to Manual": (AUTO, {**MANUAL, "memoryTier.replicas": 3}),
    "16 bits in 16 bits": (
        None,
        {"model.dtype": "float16", "memoryTier.kvCache.dtype": "bfloat16"},
    ),
    "a limit as high as the request": (
        None,
        {"gpuTier.resources": {"requests": {"cpu": "1000m"}, "limits": {"cpu": 1}}},
    ),
    "all that pods may say": (
        None,
        {
            "gateway.podLabels": {"team": "a", "example.com/x": ""},
            "gateway.tolerations": [
                {"operator": "Exists"},
                {"key": "x", "value": "y", "effect": "NoExecute", "tolerationSeconds": 5},
            ],
            "gateway.env": [{"name": "HTTPS_PROXY", "value": "http://proxy"}],
            "gateway.service": {"type": "LoadBalancer", "loadBalancerClass": "x.io/y"},
        },
    ),
}
"""By what they show: before the change, None for a resource that is made anew, and after it."""
