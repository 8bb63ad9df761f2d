"""What the operator says back: the status of a GlinthawkDeployment.

    Ready         a token can be generated: all stages and at least one worker
    Progressing   the present generation is being rolled out
    Degraded      something that is wanted is missing, or cannot be
    KVPressure    demand is above what the memory tier may hold

Every field may be missing: a status begins empty, and what is not known is not claimed.
"""

from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import Field

from glinthawk_operator.crd.values import Part, keyed_by

ConditionType = Literal["Ready", "Progressing", "Degraded", "KVPressure"]
ConditionState = Literal["True", "False", "Unknown"]

Count = Annotated[int, Field(ge=0, le=1_000_000)]
NumBytes = Annotated[int, Field(ge=0)]
Timestamp = Annotated[
    str,
    Field(
        max_length=32,
        pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z$",
        json_schema_extra={"format": "date-time"},
    ),
]
Reason = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[A-Z][A-Za-z0-9]*$")]
Message = Annotated[str, Field(max_length=4096)]


class Condition(Part):
    """One answer about the resource; Kubernetes' Condition."""

    type: ConditionType = Field(description="Which question is answered.")
    status: ConditionState = Field(description="The answer.")
    observed_generation: int | None = Field(
        default=None, ge=0, description="Generation of the spec that the answer is about."
    )
    last_transition_time: Timestamp = Field(description="When the answer last changed.")
    reason: Reason = Field(description="Why, as a word for programs.")
    message: Message = Field(default="", description="Why, and the next step, for people.")


class GpuTierStatus(Part):
    """How the GPU tier stands."""

    stages: Count | None = Field(default=None, description="Stages whose pods exist.")
    ready_stages: Count | None = Field(default=None, description="Stages that are ready.")


class KvBytesStatus(Part):
    """Bytes of the KV cache over all workers."""

    capacity: NumBytes | None = Field(default=None, description="Bytes there are.")
    used: NumBytes | None = Field(default=None, description="Bytes that sequences hold.")
    demanded: NumBytes | None = Field(
        default=None,
        description="Bytes that running sequences, and waiting ones that could run, ask for.",
    )


class ScalingDecisionStatus(Part):
    """The last decision that changed the number of workers."""

    time: Timestamp = Field(description="When it was taken.")
    from_replicas: Count = Field(description="Workers before.")
    to_replicas: Count = Field(description="Workers after.")
    reason: Reason = Field(description="Why, as a word for programs.")
    message: Message = Field(default="", description="Why, with the figures it was taken by.")


class MemoryTierStatus(Part):
    """How the memory tier stands."""

    replicas: Count | None = Field(default=None, description="Workers whose pods exist.")
    desired_replicas: Count | None = Field(
        default=None, description="Workers that there should be, by the mode of scaling."
    )
    ready_replicas: Count | None = Field(default=None, description="Workers that are ready.")
    draining: Count | None = Field(default=None, description="Workers that are being drained.")
    selector: Annotated[str, Field(max_length=1024)] | None = Field(
        default=None, description="Label selector of the workers' pods, for the scale subresource."
    )
    kv_bytes: KvBytesStatus | None = Field(
        default=None, description="Bytes of the KV cache over all workers."
    )
    last_decision: ScalingDecisionStatus | None = Field(
        default=None, description="The last decision that changed the number of workers."
    )


class ThroughputStatus(Part):
    """What comes out."""

    tokens_per_second: Annotated[float, Field(ge=0)] | None = Field(
        default=None, description="Output tokens per second, over the last seconds."
    )


class SummaryStatus(Part):
    """The figures of `kubectl get`, as it prints them."""

    stages: Annotated[str, Field(max_length=32)] | None = Field(
        default=None, description="Ready stages of those wanted, like 2/2."
    )
    workers: Annotated[str, Field(max_length=32)] | None = Field(
        default=None, description="Ready workers of those wanted, like 3/3."
    )
    kv_used: Annotated[str, Field(max_length=32)] | None = Field(
        default=None, description="Share of the KV memory that is held, like 41%."
    )


class GlinthawkDeploymentStatus(Part):
    """How a GlinthawkDeployment stands; only the operator writes it."""

    observed_generation: int | None = Field(
        default=None, ge=0, description="Generation of the spec that this status is about."
    )
    conditions: Annotated[tuple[Condition, ...], Field(max_length=16)] = Field(
        default=(),
        description="Ready, Progressing, Degraded and KVPressure, each with its reason.",
        json_schema_extra=keyed_by("type"),
    )
    endpoint: Annotated[str, Field(max_length=512)] | None = Field(
        default=None, description="URL of the API within the cluster."
    )
    gpu_tier: GpuTierStatus | None = Field(default=None, description="How the GPU tier stands.")
    memory_tier: MemoryTierStatus | None = Field(
        default=None, description="How the memory tier stands."
    )
    throughput: ThroughputStatus | None = Field(default=None, description="What comes out.")
    summary: SummaryStatus | None = Field(
        default=None, description="The figures of kubectl get, as it prints them."
    )


def build_summary(
    *, num_stages: int, gpu: GpuTierStatus | None, memory: MemoryTierStatus | None
) -> SummaryStatus:
    """Return the figures of `kubectl get`; what is not known is left out.

    num_stages: those of the spec.
    """
    ready_stages = None if gpu is None else gpu.ready_stages
    stages = None if ready_stages is None else f"{ready_stages}/{num_stages}"
    if memory is None:
        return SummaryStatus(stages=stages)
    workers = None
    if memory.ready_replicas is not None and memory.desired_replicas is not None:
        workers = f"{memory.ready_replicas}/{memory.desired_replicas}"
    return SummaryStatus(stages=stages, workers=workers, kv_used=_share(memory.kv_bytes))


def find_condition(conditions: Iterable[Condition], kind: ConditionType) -> Condition | None:
    """Return the condition of a type, None if it was never said."""
    return next((one for one in conditions if one.type == kind), None)


def _share(kv: KvBytesStatus | None) -> str | None:
    if kv is None or kv.used is None or not kv.capacity:
        return None
    return f"{100 * kv.used // kv.capacity}%"
