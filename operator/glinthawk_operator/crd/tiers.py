"""The two tiers of a spec: stages with the weights, attention workers with the KV cache."""

from typing import Annotated

from pydantic import Field

from glinthawk_operator.crd.pods import PodFields, TolerationSpec, TopologySpreadSpec
from glinthawk_operator.crd.quantity import parse_bytes
from glinthawk_operator.crd.scaling import ScalingSpec
from glinthawk_operator.crd.values import ATOMIC, Device, NumberFormat, Part, Quantity


class GpuTierSpec(PodFields):
    """The GPU tier: stages, each with the weights of a run of layers."""

    stages: int = Field(
        ge=1,
        le=1024,
        description="Stages, each a pod with a run of the model's layers; at most as many as it "
        "has layers, which are split as evenly as memory allows.",
    )
    device: Device = Field(
        default="auto",
        description="Where stages compute. cuda: on a GPU. cpu: without one. auto: on the GPU that "
        "the pod is given, else on the CPU. auto and cuda ask for one gpuResource a stage.",
    )
    gpu_memory: Quantity = Field(
        default="16Gi",
        description="Memory in bytes that a stage may fill on its device. A stage whose weights "
        "and buffers do not fit is not started, and Degraded shows the calculation.",
    )
    gpu_resource: Annotated[str, Field(min_length=1, max_length=317)] = Field(
        default="nvidia.com/gpu",
        pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?/[A-Za-z0-9][-A-Za-z0-9_.]*$",
        description="Name under which nodes offer GPUs, one of which a stage gets; such as "
        "nvidia.com/gpu.shared or nvidia.com/mig-1g.10gb.",
    )
    threads: int | None = Field(
        default=None,
        ge=1,
        le=1024,
        description="Threads of a stage's matrix products; the default is the cores it may use.",
    )
    max_rows: int = Field(
        default=1024, ge=1, le=65536, description="Rows of all lanes that one segment merges."
    )
    tolerations: Annotated[tuple[TolerationSpec, ...], Field(max_length=32)] = Field(
        default=(TolerationSpec(key="nvidia.com/gpu", operator="Exists", effect="NoSchedule"),),
        description="Taints of nodes that stages put up with; the default is that of GPU nodes.",
        json_schema_extra=ATOMIC,
    )

    @property
    def gpu_memory_bytes(self) -> int:
        """Memory that a stage may fill on its device."""
        return parse_bytes(self.gpu_memory)


class KvCacheSpec(Part):
    """The KV cache of one attention worker."""

    memory: Quantity = Field(
        description="Memory in bytes for KV pages of each worker, such as 96Gi. A worker's pod "
        "asks for this and memoryOverhead."
    )
    dtype: NumberFormat = Field(
        default="auto",
        description="Format of the KV cache; auto is that of the activations.",
    )

    @property
    def memory_bytes(self) -> int:
        """Memory for KV pages of each worker."""
        return parse_bytes(self.memory)


class MemoryTierSpec(PodFields):
    """The memory tier: attention workers, scaled by KV demand apart from the GPU tier."""

    replicas: int | None = Field(
        default=None,
        ge=1,
        le=4096,
        description="Attention workers, in the modes Manual and External, where it is needed and "
        "lies within scaling.minReplicas and maxReplicas. In Auto it is ignored, and may not "
        "change.",
    )
    kv_cache: KvCacheSpec = Field(description="The KV cache of each worker.")
    memory_overhead: Quantity = Field(
        default="384Mi",
        description="Memory in bytes of a worker's pod beside its KV pages: program, buffers, "
        "frames under way, page tables. The default is measured, and for kvCache.memory up to "
        "96Gi; above, add 2Mi for each Gi.",
    )
    threads: int | None = Field(
        default=None,
        ge=1,
        le=1024,
        description="Threads of a worker that attend; the default is the cores it may use.",
    )
    scaling: ScalingSpec = Field(
        default_factory=ScalingSpec, description="How many workers there are, and who says so."
    )
    topology_spread: Annotated[tuple[TopologySpreadSpec, ...], Field(max_length=8)] = Field(
        default=(TopologySpreadSpec(),),
        description="How evenly workers are spread over nodes; the default is over hosts, where "
        "that is possible.",
        json_schema_extra=ATOMIC,
    )

    @property
    def memory_overhead_bytes(self) -> int:
        """Memory of a worker's pod beside its KV pages."""
        return parse_bytes(self.memory_overhead)
