"""How many attention workers there are, and who says so.

Auto      the operator, by KV demand
Manual    replicas of the manifest
External  whoever writes the scale subresource: kubectl scale, an HPA, KEDA
"""

from typing import Literal

from pydantic import Field

from glinthawk_operator.crd.values import DAY_S, Part, Percent


class ScaleUpSpec(Part):
    """How the memory tier grows."""

    stabilization_window_seconds: int = Field(
        default=0,
        ge=0,
        le=3600,
        description="Seconds for which more workers must have been wanted, before any is added.",
    )
    max_step_replicas: int = Field(
        default=4,
        ge=1,
        le=4096,
        description="Workers that one step adds at most; the larger of this and maxStepPercent "
        "counts.",
    )
    max_step_percent: int = Field(
        default=100,
        ge=0,
        le=1000,
        description="Percent of the present workers that one step adds at most.",
    )
    period_seconds: int = Field(
        default=15, ge=1, le=3600, description="Seconds from one step to the next."
    )


class ScaleDownSpec(Part):
    """How the memory tier shrinks: workers are drained first, so nothing is lost."""

    stabilization_window_seconds: int = Field(
        default=300,
        ge=0,
        le=DAY_S,
        description="Seconds for which fewer workers must have been enough, before any is drained.",
    )
    drain_timeout_seconds: int = Field(
        default=600,
        ge=1,
        le=7 * DAY_S,
        description="Seconds that the drain of a worker may take, in which its sequences end there "
        "or move to other workers; one that is not over by then is taken back and reported. "
        "Also how long a worker stays when Kubernetes ends its pod.",
    )
    max_step_replicas: int = Field(
        default=1,
        ge=1,
        le=4096,
        description="Workers that are drained at a time at most; the larger of this and "
        "maxStepPercent counts.",
    )
    max_step_percent: int = Field(
        default=10,
        ge=0,
        le=100,
        description="Percent of the present workers that are drained at a time at most.",
    )
    period_seconds: int = Field(
        default=60, ge=1, le=3600, description="Seconds from one step to the next."
    )


class ScalingSpec(Part):
    """The number of attention workers.

    Wanted in Auto: ceil(KV demanded / (targetUtilization x KV of a worker)), and, only while
    stages idle more than stageIdle, at least ceil(ready workers x their busy share / targetBusy).
    """

    mode: Literal["Auto", "Manual", "External"] = Field(
        default="Auto",
        description="Who says how many workers there are. Auto: the operator, by KV demand. "
        "Manual: replicas. External: whoever writes the scale subresource (kubectl scale, an HPA, "
        "KEDA).",
    )
    min_replicas: int = Field(default=1, ge=1, le=4096, description="Fewest workers, in each mode.")
    max_replicas: int = Field(default=1, ge=1, le=4096, description="Most workers, in each mode.")
    target_utilization: Percent = Field(
        default=80, description="Percent of the tier's KV memory that demand should fill."
    )
    target_busy: Percent = Field(
        default=85,
        description="Percent of time that workers should compute at most; looked at only while "
        "stages idle.",
    )
    stage_idle: int = Field(
        default=10,
        ge=0,
        le=100,
        description="Percent of time that stages may idle, before busy workers count as the cause.",
    )
    tolerance: int = Field(
        default=10,
        ge=0,
        le=50,
        description="Percent by which demand may miss its target before the number changes.",
    )
    stale_after_seconds: int = Field(
        default=60,
        ge=5,
        le=3600,
        description="Age in seconds beyond which the gateway's figures change nothing: the number "
        "of workers stays until new ones come.",
    )
    scale_up: ScaleUpSpec = Field(
        default_factory=ScaleUpSpec, description="How the memory tier grows."
    )
    scale_down: ScaleDownSpec = Field(
        default_factory=ScaleDownSpec, description="How the memory tier shrinks."
    )
