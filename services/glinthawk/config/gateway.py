"""The configuration of a gateway, alone or with tiers of its own."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from glinthawk.config.values import (
    LOOPBACK,
    Address,
    Config,
    LogFormat,
    LogLevel,
    Names,
    NumberFormat,
    Port,
    Size,
    Transport,
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
    model: str = Field(
        default="smollm2-135m",
        description="A folder in Hugging Face layout, a .gguf file, a hub id, or smollm2-135m.",
    )
    revision: str | None = Field(default=None, description="Branch, tag or commit of a hub id.")
    served_model_name: Names = Field(
        default=(),
        description="Names under which the model is served, separated by commas; the default is "
        "the value of model.",
    )
    stages: int = Field(default=1, ge=1, le=1024, description="Stages of the GPU tier.")
    kv_dtype: NumberFormat = Field(
        default="auto", description="Format of the KV cache; auto is that of the activations."
    )
    max_sequence_length: int | None = Field(
        default=None,
        ge=2,
        description="Tokens of prompt and output together; the default is the model's context.",
    )
    seed: int = Field(
        default=0,
        ge=0,
        lt=1 << 63,
        description="From which requests without a seed of their own get theirs.",
    )
    transport: Transport = Field(
        default="auto", description="Of frames: tcp, grpc, or auto (TCP where it passes)."
    )
    prefill_tokens: int = Field(
        default=1024, ge=1, le=1 << 20, description="Prompt tokens that one prefill step takes."
    )
    max_lane_rows: int = Field(default=256, ge=1, le=65536, description="Sequences of one lane.")
    min_lane_rows: int = Field(
        default=16,
        ge=1,
        le=65536,
        description="Sequences that each lane must have before a worker opens another one.",
    )
    lanes: int | None = Field(
        default=None, ge=2, le=4096, description="Lanes in flight; the default is two a stage."
    )
    secret_file: Path | None = Field(
        default=None, description="File with the cluster's shared secret; none without it."
    )
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
    max_line_bytes: Size = Field(default=16 << 20, description="Longest line of a batch file.")
    max_key_requests: int = Field(
        default=256, ge=1, description="Requests of one key that are open at a time."
    )
    max_key_tokens: int = Field(
        default=1 << 20, ge=1, description="Prompt and output tokens of one key that are open."
    )
    metrics_port: Port = Field(default=0, description="Port of /metrics; 0 takes a free one.")
    log_level: LogLevel = Field(default="info", description="Least severe line that is logged.")
    log_format: LogFormat = Field(default="console", description="Lines for people or machines.")

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

    min_lane_rows: int = Field(
        default=256,
        ge=1,
        le=65536,
        description="Sequences that each lane must have before a worker opens another one.",
    )
    attention_workers: int = Field(
        default=1, ge=1, le=4096, description="Attention workers of the memory tier."
    )
    kv_memory: Size = Field(
        default=1 << 30, description="KV memory of each worker, in bytes or like 96GiB."
    )
    threads: str | None = Field(
        default=None,
        description="Threads of each process: a number, or by role like "
        "stage=2,attention=1. The default shares out the cores.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="Of the stages.")
    dtype: NumberFormat = Field(
        default="auto",
        description="Format of weights and activations; auto is float16 on a "
        "GPU, bfloat16 on a CPU that multiplies it natively, else float32.",
    )
    log_level: LogLevel = Field(default="warning", description="Least severe line that is logged.")
