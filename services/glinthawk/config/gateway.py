"""The configuration of a gateway, alone or with tiers of its own."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from glinthawk.config.fields import (
    APART_LANE_ROWS,
    DEFAULT_KV_MEMORY,
    DEFAULT_MODEL,
    SHARED_LANE_ROWS,
    AttentionWorkers,
    Dtype,
    FrameTransport,
    KvDtype,
    KvMemory,
    Lanes,
    LeastLevel,
    LineFormat,
    MaxLaneRows,
    MaxSequenceLength,
    MetricsPort,
    MinLaneRows,
    Model,
    PrefillTokens,
    Revision,
    RoleThreads,
    SecretFile,
    Seed,
    Stages,
    StagesDevice,
)
from glinthawk.config.values import (
    LOOPBACK,
    Address,
    Config,
    Names,
    Port,
    Size,
    parse_address,
    read_secret,
)


class GatewayConfig(Config):
    """The gateway: the API, the jobs behind it, and the tiers that register with it."""

    host: str = Field(default="127.0.0.1", description="Interface of the HTTP API.")
    port: Port = Field(default=8000, description="Port of the HTTP API; 0 takes a free one.")
    data_dir: Path = Field(
        default=Path("glinthawk-data"),
        description="Folder of the store: files, jobs and results; made where it is missing.",
    )
    listen: Address = Field(
        default="127.0.0.1:7070",
        description="Where stages and workers register, and gRPC clients call.",
    )
    control_port: Port = Field(
        default=7071, description="Port of the control API in JSON; 0 takes a free one."
    )
    model: Model = DEFAULT_MODEL
    revision: Revision = None
    served_model_name: Names = Field(
        default=(),
        description="Names under which the model is served, separated by commas; the default is "
        "the value of model.",
    )
    stages: Stages = 1
    kv_dtype: KvDtype = "auto"
    max_sequence_length: MaxSequenceLength = None
    seed: Seed = 0
    transport: FrameTransport = "auto"
    prefill_tokens: PrefillTokens = 1024
    max_lane_rows: MaxLaneRows = 256
    min_lane_rows: MinLaneRows = APART_LANE_ROWS
    lanes: Lanes = None
    secret_file: SecretFile = None
    keys: Literal["auto", "on", "off"] = Field(
        default="auto",
        description="Whether API keys are asked for; auto is on, except on loopback. Off, the API "
        "may listen on loopback only.",
    )
    keys_file: Path | None = Field(
        default=None,
        description="File of further API keys, a line `name:sha256` each; read when it changes.",
    )
    tls_certificate: Path | None = Field(
        default=None, description="Certificate chain of the HTTP API, PEM."
    )
    tls_key: Path | None = Field(default=None, description="Private key of the certificate, PEM.")
    max_body_bytes: Size = Field(
        default=16 << 20, description="Largest body of a request that is no upload."
    )
    max_file_bytes: Size = Field(default=8 << 30, description="Largest file that is kept.")
    max_line_bytes: Size = Field(
        default=16 << 20, le=256 << 20, description="Longest line of a batch file."
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
    metrics_port: MetricsPort = 0
    log_level: LeastLevel = "info"
    log_format: LineFormat = "console"

    @model_validator(mode="after")
    def _check_guarded(self) -> Self:
        if self.keys == "off" and self.host not in LOOPBACK:
            raise ValueError(
                f"keys are off and host is {self.host}: anyone who reaches it could use it; turn "
                "keys on, or listen on 127.0.0.1"
            )
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key go together: give both or none")
        return self

    @property
    def secret(self) -> str | None:
        """The cluster's shared secret, from its file."""
        return read_secret(self.secret_file)

    @property
    def listen_address(self) -> tuple[str, int]:
        """Host and port of `listen`."""
        return parse_address(self.listen)

    @property
    def asks_for_keys(self) -> bool:
        """Whether the HTTP API asks for keys."""
        return self.keys == "on" or (self.keys == "auto" and self.host not in LOOPBACK)

    @property
    def asks_for_grpc_keys(self) -> bool:
        """Whether gRPC asks users for keys: also where only the address of gRPC is reached from
        elsewhere."""
        return self.asks_for_keys or self.listen_address[0] not in LOOPBACK

    @property
    def model_names(self) -> tuple[str, ...]:
        """Names that a request may give as its model."""
        return self.served_model_name or (self.model,)


class UpConfig(GatewayConfig):
    """A gateway with stages and attention workers of its own, on this machine."""

    min_lane_rows: MinLaneRows = SHARED_LANE_ROWS
    attention_workers: AttentionWorkers = 1
    kv_memory: KvMemory = DEFAULT_KV_MEMORY
    threads: RoleThreads = None
    device: StagesDevice = "auto"
    dtype: Dtype = "auto"
    log_level: LeastLevel = "warning"
