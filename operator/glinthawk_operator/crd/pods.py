"""What a spec may say about the pods of a tier, in Kubernetes' own words.

A chosen part of a pod template, not the whole of it: the rest (probes, security, volumes, ports)
is the operator's, and a template that users write could break it.
"""

from typing import Annotated, Literal

from pydantic import Field

from glinthawk_operator.crd.values import (
    ATOMIC,
    ATOMIC_MAP,
    QUALIFIED_KEY,
    Annotations,
    LabelKey,
    Labels,
    LabelValue,
    ObjectName,
    Part,
    Quantity,
    keyed_by,
)

ResourceName = Annotated[str, Field(min_length=1, max_length=317, pattern=QUALIFIED_KEY)]


class ResourcesSpec(Part):
    """What a container asks of its node."""

    requests: Annotated[dict[ResourceName, Quantity], Field(max_length=16)] = Field(
        default_factory=dict,
        description="What the node keeps free for the pod, by resource: cpu in cores (500m, 2), "
        "memory and ephemeral-storage in bytes (2Gi).",
    )
    limits: Annotated[dict[ResourceName, Quantity], Field(max_length=16)] = Field(
        default_factory=dict,
        description="What the pod can use at most, by resource, written as requests are. A limit "
        "of cpu also bounds the threads.",
    )


class TolerationSpec(Part):
    """A taint of nodes that pods put up with; Kubernetes' Toleration."""

    key: LabelKey | None = Field(
        default=None, description="Key of the taint; none, with operator Exists, is any taint."
    )
    operator: Literal["Exists", "Equal"] = Field(
        default="Equal", description="Exists: the key is enough. Equal: the value must match too."
    )
    value: LabelValue | None = Field(
        default=None, description="Value of the taint, for operator Equal."
    )
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = Field(
        default=None, description="Effect of the taint; none is every effect."
    )
    toleration_seconds: int | None = Field(
        default=None,
        ge=0,
        le=7 * 24 * 3600,
        description="Seconds for which the effect NoExecute is put up with; none is for ever.",
    )


class TopologySpreadSpec(Part):
    """How evenly the pods of a tier are spread over the nodes; their label selector is implied."""

    topology_key: LabelKey = Field(
        default="kubernetes.io/hostname",
        description="Label of nodes; those with the same value are one domain.",
    )
    max_skew: int = Field(
        default=1,
        ge=1,
        le=1000,
        description="Pods by which the fullest domain may exceed the emptiest.",
    )
    when_unsatisfiable: Literal["ScheduleAnyway", "DoNotSchedule"] = Field(
        default="ScheduleAnyway",
        description="ScheduleAnyway: prefer an even spread. DoNotSchedule: rather wait.",
    )


class EnvironmentVariable(Part):
    """A variable for the containers of a tier, such as HTTPS_PROXY."""

    name: str = Field(
        min_length=1,
        max_length=253,
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
        description="Name of the variable. GLINTHAWK_ variables are the operator's.",
    )
    value: str = Field(default="", max_length=4096, description="Its value.")


class PodFields(Part):
    """What each tier may say of its pods; these fields stand beside the tier's own.

    A base and not a part, because people expect nodeSelector where the tier is.
    """

    image: str | None = Field(
        default=None,
        min_length=1,
        max_length=1024,
        description="Image of the pods; the default is the one of the operator's release. All "
        "images must be of one version.",
    )
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] = Field(
        default="IfNotPresent", description="When the node fetches the image."
    )
    resources: ResourcesSpec = Field(
        default_factory=ResourcesSpec, description="CPU, memory and further resources of a pod."
    )
    node_selector: Labels = Field(
        default_factory=dict,
        description="Labels that a node must have for these pods.",
        json_schema_extra=ATOMIC_MAP,
    )
    tolerations: Annotated[tuple[TolerationSpec, ...], Field(max_length=32)] = Field(
        default=(),
        description="Taints of nodes that these pods put up with.",
        json_schema_extra=ATOMIC,
    )
    topology_spread: Annotated[tuple[TopologySpreadSpec, ...], Field(max_length=8)] = Field(
        default=(),
        description="How evenly the pods are spread over nodes; none: as it comes.",
        json_schema_extra=ATOMIC,
    )
    runtime_class_name: ObjectName | None = Field(
        default=None, description="RuntimeClass of the pods, such as nvidia; none is the node's."
    )
    priority_class_name: ObjectName | None = Field(
        default=None, description="PriorityClass of the pods; none is the cluster's default."
    )
    pod_labels: Labels = Field(
        default_factory=dict,
        description="Further labels of the pods; app.kubernetes.io/ and glinthawk.dev/ are the "
        "operator's.",
    )
    pod_annotations: Annotations = Field(
        default_factory=dict, description="Further annotations of the pods."
    )
    env: Annotated[tuple[EnvironmentVariable, ...], Field(max_length=32)] = Field(
        default=(),
        description="Further environment variables of the containers.",
        json_schema_extra=keyed_by("name"),
    )
