"""What a user asks for: the spec of a GlinthawkDeployment, as the API server keeps it.

Bounds of single fields are here and in the schema; what holds between fields is in rules.py, which
only the API server evaluates. Whoever reads a spec must not rely on rules of a later release.
"""

from typing import Annotated

from pydantic import Field

from glinthawk_operator.crd.parts import (
    CLAIM_SCHEME,
    HUB_SCHEME,
    CacheSpec,
    GatewaySpec,
    MetricsSpec,
    ModelSpec,
    NetworkPolicySpec,
    PricesSpec,
    ServiceSpec,
    StorageSpec,
)
from glinthawk_operator.crd.pods import (
    EnvironmentVariable,
    PodFields,
    ResourcesSpec,
    TolerationSpec,
    TopologySpreadSpec,
)
from glinthawk_operator.crd.scaling import ScaleDownSpec, ScaleUpSpec, ScalingSpec
from glinthawk_operator.crd.tiers import GpuTierSpec, KvCacheSpec, MemoryTierSpec
from glinthawk_operator.crd.values import (
    AS_SET,
    DAY_S,
    LogFormat,
    LogLevel,
    ObjectName,
    Part,
    Quantity,
    Transport,
)

__all__ = [
    "CLAIM_SCHEME",
    "GROUP",
    "HUB_SCHEME",
    "KIND",
    "PLURAL",
    "SHORT_NAME",
    "VERSION",
    "CacheSpec",
    "EnvironmentVariable",
    "GatewaySpec",
    "GlinthawkDeploymentSpec",
    "GpuTierSpec",
    "KvCacheSpec",
    "MemoryTierSpec",
    "MetricsSpec",
    "ModelSpec",
    "NetworkPolicySpec",
    "Part",
    "PodFields",
    "PricesSpec",
    "Quantity",
    "ResourcesSpec",
    "ScaleDownSpec",
    "ScaleUpSpec",
    "ScalingSpec",
    "ServiceSpec",
    "StorageSpec",
    "TolerationSpec",
    "TopologySpreadSpec",
]

GROUP = "glinthawk.dev"
VERSION = "v1alpha1"
KIND = "GlinthawkDeployment"
PLURAL = "glinthawkdeployments"
SHORT_NAME = "ghd"


class GlinthawkDeploymentSpec(Part):
    """A model served on two tiers: stages with the weights, workers with the KV cache."""

    model: ModelSpec = Field(description="The model: where it is, and in which numbers it runs.")
    gpu_tier: GpuTierSpec = Field(
        description="The GPU tier: stages, each with the weights of a run of layers."
    )
    memory_tier: MemoryTierSpec = Field(
        description="The memory tier: attention workers with the KV cache, scaled by its demand."
    )
    gateway: GatewaySpec = Field(
        default_factory=GatewaySpec, description="The gateway: the API, jobs and the scheduler."
    )
    transport: Transport = Field(
        default="auto",
        description="Of frames between the pods: tcp, grpc, or auto (TCP where it passes).",
    )
    log_level: LogLevel = Field(default="info", description="Least severe line that is logged.")
    log_format: LogFormat = Field(default="json", description="Lines for machines or people.")
    image_pull_secrets: Annotated[tuple[ObjectName, ...], Field(max_length=16)] = Field(
        default=(),
        description="Secrets of this namespace that open the images' registry.",
        json_schema_extra=AS_SET,
    )
    metrics: MetricsSpec = Field(
        default_factory=MetricsSpec, description="How Prometheus finds the pods."
    )
    network_policy: NetworkPolicySpec = Field(
        default_factory=NetworkPolicySpec, description="Who may speak to whom."
    )
    prices: PricesSpec = Field(
        default_factory=PricesSpec, description="What machines cost, for figures of cost per token."
    )
    progress_deadline_seconds: int = Field(
        default=1800,
        ge=30,
        le=7 * DAY_S,
        description="Seconds that pods may take to come up, a model's download included, before "
        "Degraded says that the rollout is stuck.",
    )
