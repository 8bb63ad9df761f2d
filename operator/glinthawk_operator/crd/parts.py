"""The parts of a spec beside the tiers: model, gateway, and what is said of all pods."""

from typing import Annotated, Literal

from pydantic import Field

from glinthawk_operator.crd.pods import PodFields
from glinthawk_operator.crd.quantity import parse_bytes
from glinthawk_operator.crd.values import (
    AS_SET,
    ATOMIC,
    Annotations,
    Labels,
    NumberFormat,
    ObjectName,
    Part,
    Quantity,
    Switch,
    Text,
    WhenDeleted,
)

HUB_SCHEME = "hf://"
CLAIM_SCHEME = "pvc://"

Port = Annotated[int, Field(ge=1, le=65535)]
Price = Annotated[float, Field(ge=0, le=1_000_000)]


class CacheSpec(Part):
    """The volume on which each stage keeps the tensors of its layers; not used with pvc://."""

    size: Quantity = Field(
        default="50Gi",
        description="Size in bytes of each stage's volume: its share of the model's files.",
    )
    storage_class_name: ObjectName | None = Field(
        default=None, description="StorageClass of the volumes; none is the cluster's default."
    )
    when_deleted: WhenDeleted = Field(
        default="Delete",
        description="What becomes of the volumes when the resource is deleted; they can be "
        "fetched again.",
    )

    @property
    def size_bytes(self) -> int:
        """Size of each stage's volume."""
        return parse_bytes(self.size)


class ModelSpec(Part):
    """The model: where it is, and in which numbers it is computed."""

    source: str = Field(
        min_length=7,
        max_length=512,
        description="Where the model is: hf://organisation/name, of a hub; or pvc://claim/folder, "
        "in a volume of this namespace (a folder in Hugging Face layout, or a .gguf file).",
    )
    revision: Text | None = Field(
        default=None, description="Branch, tag or commit of a hub's model; none is its default."
    )
    endpoint: str | None = Field(
        default=None,
        max_length=512,
        pattern=r"^https?://[^\s/]+(/\S*)?$",
        description="URL of a mirror of the hub; none is the hub that the images know.",
    )
    dtype: NumberFormat = Field(
        default="auto",
        description="Format of weights and activations; auto is float16 on a GPU, bfloat16 on a "
        "CPU that multiplies it natively, else float32.",
    )
    max_sequence_length: int | None = Field(
        default=None,
        ge=2,
        description="Tokens of prompt and output together; the default is the model's context.",
    )
    served_model_name: Annotated[tuple[Text, ...], Field(max_length=32)] = Field(
        default=(),
        description="Names under which the model is served; the default is its source without "
        "the scheme.",
        json_schema_extra=AS_SET,
    )
    cache: CacheSpec = Field(
        default_factory=CacheSpec, description="The volume of each stage for its tensors."
    )
    credentials_secret: ObjectName | None = Field(
        default=None,
        description="Secret in this namespace whose key `token` opens the hub; none for public "
        "models.",
    )

    @property
    def hub_id(self) -> str | None:
        """Organisation and name at a hub; None for a volume's model."""
        if not self.source.startswith(HUB_SCHEME):
            return None
        return self.source.removeprefix(HUB_SCHEME)

    @property
    def claim(self) -> tuple[str, str] | None:
        """Claim and path in its volume, without a leading slash; None for a hub's model."""
        if not self.source.startswith(CLAIM_SCHEME):
            return None
        name, _, path = self.source.removeprefix(CLAIM_SCHEME).partition("/")
        return name, path

    @property
    def model_names(self) -> tuple[str, ...]:
        """Names that a request may give as its model."""
        return self.served_model_name or (self.source.partition("://")[2],)


class StorageSpec(Part):
    """The volume of the gateway: files, batches, results and keys. Its loss loses them."""

    size: Quantity = Field(
        default="20Gi",
        description="Size in bytes. A batch needs room for its input, and until it is over twice "
        "for its answers.",
    )
    storage_class_name: ObjectName | None = Field(
        default=None,
        description="StorageClass of the volume, of a disk and not of a network file system; none "
        "is the cluster's default.",
    )
    when_deleted: WhenDeleted = Field(
        default="Retain", description="What becomes of the volume when the resource is deleted."
    )

    @property
    def size_bytes(self) -> int:
        """Size of the volume."""
        return parse_bytes(self.size)


class ServiceSpec(Part):
    """The Service by which users reach the gateway."""

    type: Literal["ClusterIP", "NodePort", "LoadBalancer"] = Field(
        default="ClusterIP", description="Who can reach it; Kubernetes' service type."
    )
    port: Port = Field(default=8000, description="Port of the HTTP API.")
    grpc_port: Port = Field(default=7070, description="Port of gRPC.")
    annotations: Annotations = Field(
        default_factory=dict, description="Annotations of the Service, for load balancers."
    )
    load_balancer_class: Annotated[str, Field(min_length=1, max_length=317)] | None = Field(
        default=None, description="Class of the load balancer; none is the cloud's."
    )
    load_balancer_source_ranges: Annotated[
        tuple[Annotated[str, Field(max_length=49)], ...], Field(max_length=64)
    ] = Field(
        default=(),
        description="Addresses like 10.0.0.0/8 from which it may be reached.",
        json_schema_extra=ATOMIC,
    )


class GatewaySpec(PodFields):
    """The gateway: the API, jobs, and the scheduler."""

    storage: StorageSpec = Field(
        default_factory=StorageSpec, description="The volume with files, batches and results."
    )
    service: ServiceSpec = Field(
        default_factory=ServiceSpec, description="The Service by which users reach it."
    )
    api_keys_secret: ObjectName | None = Field(
        default=None,
        description="Secret in this namespace whose key `keys` has a line `name:sha256` for each "
        "API key; none: a Secret NAME-api-key with one key is made, once.",
    )
    tls_secret: ObjectName | None = Field(
        default=None,
        description="Secret in this namespace of type kubernetes.io/tls with the certificate of "
        "the HTTP API; none: plain HTTP.",
    )
    lanes: int | None = Field(
        default=None, ge=2, le=4096, description="Lanes in flight; the default is two a stage."
    )
    max_lane_rows: int = Field(default=256, ge=1, le=65536, description="Sequences of one lane.")
    min_lane_rows: int = Field(
        default=16,
        ge=1,
        le=65536,
        description="Sequences that each lane must have before a worker opens another one.",
    )
    prefill_tokens: int = Field(
        default=1024, ge=1, le=1 << 20, description="Prompt tokens that one prefill step takes."
    )
    seed: int = Field(
        default=0,
        ge=0,
        lt=1 << 63,
        description="From which requests without a seed of their own get theirs.",
    )
    max_body_bytes: Quantity = Field(
        default="16Mi", description="Bytes of the largest body of a request that is no upload."
    )
    max_file_bytes: Quantity = Field(
        default="8Gi", description="Bytes of the largest file that is kept."
    )
    max_line_bytes: Quantity = Field(
        default="16Mi", description="Bytes of the longest line of a batch file."
    )
    max_key_requests: int = Field(
        default=256, ge=1, description="Requests of one key that are open at a time."
    )
    max_key_tokens: int = Field(
        default=1 << 20, ge=1, description="Prompt and output tokens of one key that are open."
    )
    max_key_batches: int = Field(
        default=1000, ge=1, description="Batches of one key that are not over."
    )


class MetricsSpec(Part):
    """How Prometheus finds the pods."""

    service_monitor: Switch = Field(
        default="Auto",
        description="Whether a ServiceMonitor is made. Auto: where the cluster knows the kind.",
    )
    labels: Labels = Field(
        default_factory=dict, description="Labels of the ServiceMonitor, by which it is selected."
    )
    interval_seconds: int = Field(
        default=15, ge=1, le=3600, description="Seconds from one scrape to the next."
    )


class NetworkPolicySpec(Part):
    """Who may speak to whom; needs a network that enforces it."""

    enabled: bool = Field(
        default=True,
        description="Whether NetworkPolicies allow only the connections that exist: users to the "
        "gateway, pods of this resource among each other, Prometheus to metrics.",
    )


class PricesSpec(Part):
    """What the machines cost, for figures of cost per token; without effect on scaling."""

    currency: Annotated[str, Field(min_length=1, max_length=8)] = Field(
        default="USD", description="Currency of the prices."
    )
    stage_per_hour: Price = Field(default=0, description="Price of a stage's machine per hour.")
    worker_per_hour: Price = Field(default=0, description="Price of a worker's machine per hour.")
    gateway_per_hour: Price = Field(
        default=0, description="Price of the gateway's machine, per hour."
    )
